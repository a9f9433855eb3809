from lmtraining_cli.app import main

main()
