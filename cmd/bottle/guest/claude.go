package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// guestMemory is a folder of the agent's in the sandbox's memory.
const guestMemory = "/.bottle/run"

// claudeKeyPart is how much of an API key Claude Code keeps to know it by, in
// bytes.
const claudeKeyPart = 20

// approveKey answers Claude Code's question whether the API key of its
// environment may be used. The answer takes the key's end, and the root file
// system is on the host's disk: so the state file moves to memory first, and a
// link takes its place, which Claude Code writes through.
func approveKey() error {
	key := os.Getenv("ANTHROPIC_API_KEY")
	home := os.Getenv("HOME")
	state, dir := filepath.Join(home, ".claude.json"), filepath.Join(home, ".claude")
	if d := os.Getenv("CLAUDE_CONFIG_DIR"); d != "" {
		state, dir = filepath.Join(d, ".claude.json"), d
	}
	data, err := os.ReadFile(state)
	if key == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		data, err = approved(data, key[max(0, len(key)-claudeKeyPart):])
	}
	if err == nil && data != nil {
		err = errors.Join(moveBackups(filepath.Join(dir, "backups")), replaceState(state, data))
	}
	if err != nil {
		return fmt.Errorf("tell Claude Code that its API key may be used: %w", err)
	}
	return nil
}

// approved adds to what Claude Code's state approves; it is nil where that is
// there already, or was refused.
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
	var yes, no []string // what is no list of texts is replaced
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

// moveBackups has Claude Code keep the state's older versions in memory too. What
// the image has of them is put aside.
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
	// Another session may have been first.
	if err := os.Symlink(inMemory, backups); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// replaceState writes the state in memory and has the file lead there.
func replaceState(state string, data []byte) error {
	inMemory := filepath.Join(guestMemory, "claude.json")
	temp := fmt.Sprintf("%s.%d", inMemory, os.Getpid())
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(temp, inMemory); err != nil {
		return err
	}
	if to, err := os.Readlink(state); err == nil && to == inMemory {
		return nil
	}
	link := fmt.Sprintf("%s.%d", state, os.Getpid())
	if err := os.Symlink(inMemory, link); err != nil {
		return err
	}
	return os.Rename(link, state)
}
