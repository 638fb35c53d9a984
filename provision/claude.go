package provision

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// places are the paths of Claude Code's user configuration.
type places struct{ state, settings, skills string }

// claudePlaces returns the places in a home directory.
func claudePlaces(home string) places {
	dir := path.Join(home, ".claude")
	return places{path.Join(home, ".claude.json"), path.Join(dir, "settings.json"), path.Join(dir, "skills")}
}

// claudeConfigDir returns the places with CLAUDE_CONFIG_DIR, which contains all of them.
func claudeConfigDir(dir string) places {
	return places{path.Join(dir, ".claude.json"), path.Join(dir, "settings.json"), path.Join(dir, "skills")}
}

// claudeEnv disables the features of Claude Code that need more hosts than its API. As
// root it skips permission questions only if IS_SANDBOX is set.
func claudeEnv(uid uint32) []string {
	env := []string{
		"DISABLE_AUTOUPDATER=1",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
		"CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL=1",
	}
	if uid == 0 {
		env = append(env, "IS_SANDBOX=1")
	}
	return env
}

// claudeFiles answers Claude Code's first questions, so that it starts with its prompt:
// the tour, trust in the working directory, and the warning about its mode without
// permissions. Other settings in the image's files do not change. The guest program
// approves an API key at the start of a session: that needs a part of the key, which must
// not be on disk.
func claudeFiles(at places, workDir string) []rootfile.File {
	state := func(old []byte) ([]byte, error) {
		return mergeJSON(old, false, map[string]any{
			"hasCompletedOnboarding": true,
			"projects":               map[string]any{workDir: map[string]any{"hasTrustDialogAccepted": true}},
		})
	}
	settings := func(old []byte) ([]byte, error) {
		return mergeJSON(old, true, map[string]any{"skipDangerousModePermissionPrompt": true})
	}
	return []rootfile.File{
		{Path: at.state, Mode: 0o600, Edit: state},
		{Path: at.settings, Mode: 0o600, Edit: settings},
	}
}

// mergeJSON sets keys of an object and of its nested objects. Other keys keep their
// values; with keep, so do the given keys that already have one.
func mergeJSON(old []byte, keep bool, set map[string]any) ([]byte, error) {
	object := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &object); err != nil {
			return nil, &hint.Error{Err: fmt.Errorf("invalid JSON object in the image's file: %w", err), Hint: "fix it in the image"}
		}
	}
	if object == nil { // it was null
		object = map[string]json.RawMessage{}
	}
	for key, value := range set {
		var err error
		inner, nested := value.(map[string]any)
		switch {
		case nested:
			object[key], err = mergeJSON(object[key], keep, inner)
		case !keep || object[key] == nil:
			object[key], err = json.Marshal(value)
		}
		if err != nil {
			return nil, err
		}
	}
	return json.MarshalIndent(object, "", "  ")
}
