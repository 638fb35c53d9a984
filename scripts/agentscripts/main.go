// Command agentscripts writes the installation scripts of the agents' images, one file
// NAME.sh for each kind that has an image, so that the lab installs the agents as their
// Dockerfiles do:
//
//	agentscripts DIR
//
// A script needs npm and the variable arch, and places the files below $out.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/images/agent"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "agentscripts:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("expected exactly one directory")
	}
	for _, name := range agents.Names() {
		k := agents.Get(name)
		if k.Image == nil {
			continue
		}
		var text strings.Builder
		for _, arg := range k.Image.Args {
			text.WriteString(arg + "\n")
		}
		text.WriteString(strings.ReplaceAll(agent.Script(k), " /out/", ` "$out"/`))
		if err := os.WriteFile(filepath.Join(args[0], name+".sh"), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
