// Sharedstorage makes the volumes of the StorageClass "shared": one directory per claim.
//
// Promise: any user in any pod of the one node may write there (the directory is 0777, its parent
// cannot be listed), several pods may mount it at once, and a released volume is removed only when
// its policy is Delete. Trap avoided: a volume's name is never trusted as a path, so that a forged
// PersistentVolume cannot make this process, which runs as root, remove something else.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const (
	provisionerName = "devcluster.lmtraining.dev/shared"
	anyUserMayWrite = 0o777
)

// provisioner keeps one directory per volume. The two roots are one directory under two names
// when the node is a container (kind) that mounts it from the host.
type provisioner struct{ directory, nodeDirectory, node string }

func (p provisioner) path(volume string) (string, error) {
	if filepath.Base(volume) != volume || volume == "." || volume == ".." {
		return "", fmt.Errorf("volume name %q is not a plain name: refused", volume)
	}
	return filepath.Join(p.directory, volume), nil
}

func (p provisioner) Provision(_ context.Context, options controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	path, err := p.path(options.PVName)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := os.MkdirAll(path, anyUserMayWrite); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := os.Chmod(path, anyUserMayWrite); err != nil { // Mkdir obeys the umask, Chmod does not
		return nil, controller.ProvisioningFinished, err
	}
	kind := v1.HostPathDirectory
	onNode := v1.NodeSelectorRequirement{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{p.node}}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			Capacity:                      options.PVC.Spec.Resources.Requests,
			PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{
				Path: filepath.Join(p.nodeDirectory, options.PVName), Type: &kind,
			}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{onNode}}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

func (p provisioner) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	path, err := p.path(volume.Name)
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	directory := flag.String("directory", "", "where the volumes lie, as this process sees it")
	nodeDirectory := flag.String("node-directory", "", "the same directory as the node sees it (default: --directory)")
	node := flag.String("node", "", "the node's kubernetes.io/hostname label")
	flag.Parse()
	if *nodeDirectory == "" {
		*nodeDirectory = *directory
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatalf("--kubeconfig %s: %v", *kubeconfig, err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	controller.NewProvisionController(ctx, kubernetes.NewForConfigOrDie(config), provisionerName,
		provisioner{*directory, *nodeDirectory, *node}, controller.LeaderElection(false)).Run(ctx)
}
