package provision

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// places are where Claude Code looks for what is its user's.
type places struct{ state, settings, skills string }

func claudePlaces(home string) places {
	dir := path.Join(home, ".claude")
	return places{path.Join(home, ".claude.json"), path.Join(dir, "settings.json"), path.Join(dir, "skills")}
}

// claudeConfigDir is for a CLAUDE_CONFIG_DIR, which holds all of it.
func claudeConfigDir(dir string) places {
	return places{path.Join(dir, ".claude.json"), path.Join(dir, "settings.json"), path.Join(dir, "skills")}
}

// claudeEnv keeps Claude Code from what would need more than its API's host. As
// root it does without questions only in a sandbox, which this is.
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

// claudeFiles answer Claude Code's first questions, so that it begins with its
// prompt: the tour, whether the folder it begins in is trusted, and the warning
// of its mode without permissions. All else that the image's files say stays.
// That an API key may be used is said by bottle's program inside, at a session's
// begin: it takes a part of the key, which must not lie on disk.
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

// mergeJSON sets keys of an object, and of the objects in it; what they do not
// name stays as it is written, and with keep also what has a value already.
func mergeJSON(old []byte, keep bool, set map[string]any) ([]byte, error) {
	object := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &object); err != nil {
			return nil, &hint.Error{Err: fmt.Errorf("the image's is no JSON object: %w", err), Hint: "mend it in the image"}
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
