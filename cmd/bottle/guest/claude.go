package guest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// guestMemory is a directory of the agent on a tmpfs in the sandbox's memory.
const guestMemory = "/.bottle/run"

// claudeKeyPart is the length in bytes of the API key suffix by which Claude Code
// identifies an approved key.
const claudeKeyPart = 20

// approveKey records in Claude Code's state that the API key in the environment may
// be used, so that Claude Code does not ask. The record contains the end of the
// key, and the root file system is stored on the host's disk. Therefore the state
// file is first moved to memory and replaced by a symbolic link, which Claude Code
// follows when it writes.
func approveKey(env *environ) error {
	key := env.get("ANTHROPIC_API_KEY")
	if key == "" {
		return nil
	}
	home := env.get("HOME")
	state, dir := filepath.Join(home, ".claude.json"), filepath.Join(home, ".claude")
	if d := env.get("CLAUDE_CONFIG_DIR"); d != "" {
		state, dir = filepath.Join(d, ".claude.json"), d
	}
	data, err := readState(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		data, err = approved(data, key[max(0, len(key)-claudeKeyPart):])
	}
	if err == nil && data != nil {
		err = errors.Join(moveBackups(filepath.Join(dir, "backups")), replaceState(state, data))
	}
	if err != nil {
		return fmt.Errorf("approve the API key for Claude Code: %w", err)
	}
	return nil
}

// maxState bounds Claude Code's state, in bytes. PID 1 reads it, and the agent writes it.
const maxState = 32 << 20

// readState reads Claude Code's state without waiting for it, or for its end.
func readState(name string) (data []byte, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxState {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", name, maxState)
	}
	return io.ReadAll(io.LimitReader(f, maxState))
}

// approved adds part to the approved keys in Claude Code's state. It returns nil if
// the key is already approved or rejected.
func approved(data []byte, part string) ([]byte, error) {
	const field = "customApiKeyResponses"
	state, responses := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &state); err != nil {
		return nil, err
	}
	if raw, ok := state[field]; ok {
		if err := json.Unmarshal(raw, &responses); err != nil {
			return nil, err
		}
	}
	var yes, no []string // values of another type are replaced
	_ = json.Unmarshal(responses["approved"], &yes)
	_ = json.Unmarshal(responses["rejected"], &no)
	if slices.Contains(yes, part) || slices.Contains(no, part) {
		return nil, nil
	}
	var err error
	if responses["approved"], err = json.Marshal(append(yes, part)); err != nil {
		return nil, err
	}
	if state[field], err = json.Marshal(responses); err != nil {
		return nil, err
	}
	return json.MarshalIndent(state, "", "  ")
}

// moveBackups makes Claude Code keep its backups of the state file in memory too.
// Backups in the image are renamed.
func moveBackups(backups string) error {
	inMemory := filepath.Join(guestMemory, "backups")
	if err := os.Mkdir(inMemory, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	switch to, err := os.Readlink(backups); {
	case err == nil && to == inMemory:
		return nil
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		if err := os.Rename(backups, backups+".image"); err != nil {
			return err
		}
	}
	// A concurrent session may have created it.
	if err := os.Symlink(inMemory, backups); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// replaceState writes the state to memory and replaces the file with a link to it.
func replaceState(state string, data []byte) error {
	inMemory := filepath.Join(guestMemory, "claude.json")
	part := rand.Text() // PID 1 may do this for several sessions at once
	temp := inMemory + "." + part
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(temp, inMemory); err != nil {
		return err
	}
	if to, err := os.Readlink(state); err == nil && to == inMemory {
		return nil
	}
	link := state + "." + part
	if err := os.Symlink(inMemory, link); err != nil {
		return err
	}
	return os.Rename(link, state)
}
