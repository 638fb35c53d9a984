// Command agentclient is run by a build step in tests. It lists the keys of the ssh
// agent and signs with each, or removes all keys.
package main

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh/agent"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Println(err)
	}
}

func run(command string) error {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	a := agent.NewClient(conn)
	if command == "remove" {
		return a.RemoveAll()
	}
	keys, err := a.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		signature, err := a.Sign(k, []byte("data"))
		if err == nil {
			err = k.Verify([]byte("data"), signature)
		}
		if err != nil {
			return err
		}
		fmt.Printf("%s: signed\n", k.Comment)
	}
	return nil
}
