// Package runscstate reads what gVisor's command line tool records of a sandbox in its root
// directory (gVisor runsc/container, StateFile). The small programs of bottle use it, so that it
// imports only small packages.
package runscstate

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// State is a part of the record of a sandbox's first container, which has the sandbox's ID.
type State struct {
	Status    string // "creating", "created", "running", "paused" or "stopped"
	BundleDir string
	Sandbox   struct {
		Pid               int    // of the sandbox's process on the host
		ControlSocketPath string // of the socket at which the sandbox accepts calls
	}
	Spec struct {
		Annotations map[string]string
	}
}

// Path returns the path of the record of a sandbox.
func Path(root, id string) string {
	return filepath.Join(root, fmt.Sprintf("%s_sandbox:%s.state", id, id))
}

// Read reads the record of a sandbox. It is written without a temporary file, so that it can be
// incomplete, which is an error.
func Read(root, id string) (s State, err error) {
	data, err := os.ReadFile(Path(root, id))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read the state of sandbox %s: %w", id, err)
	}
	return s, nil
}
