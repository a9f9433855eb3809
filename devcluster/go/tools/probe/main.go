// Probe is the smallest program that can tell whether pods work: it serves one word, or it tries
// a name, an address, a file, and an address that must not answer, and says what it found.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

const limit = 10 * time.Second

func main() {
	serve := flag.String("serve", "", "address to answer on, for ever")
	lookup := flag.String("lookup", "", "name that must resolve")
	get := flag.String("get", "", "URL that must answer 200")
	connect := flag.String("connect", "", "host:port that must accept a connection")
	write := flag.String("write", "", "file that must be writable")
	unreachable := flag.String("unreachable", "", "host:port that must not accept a connection")
	flag.Parse()
	if *serve != "" {
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
		exit("serve", http.ListenAndServe(*serve, nil))
	}
	check("lookup", *lookup, func(name string) error { _, err := net.LookupHost(name); return err })
	check("get", *get, fetch)
	check("connect", *connect, accepts)
	check("write", *write, func(path string) error { return os.WriteFile(path, []byte("written"), 0o644) })
	check("unreachable", *unreachable, refuses)
	fmt.Println("all well")
}

func check(what, value string, try func(string) error) {
	if value == "" {
		return
	}
	started := time.Now()
	if err := try(value); err != nil {
		exit(what+" "+value, err)
	}
	fmt.Printf("%s %s: well, %d ms\n", what, value, time.Since(started).Milliseconds())
}

func fetch(url string) error {
	client := http.Client{Timeout: limit}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1024))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return err
}

func accepts(address string) error {
	connection, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return err
	}
	return connection.Close()
}

func refuses(address string) error {
	if accepts(address) == nil {
		return fmt.Errorf("a connection was accepted")
	}
	return nil
}

func exit(what string, err error) {
	fmt.Printf("%s: %v\n", what, err)
	os.Exit(1)
}
