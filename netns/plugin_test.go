package netns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPluginEnvironment checks that a plugin does not inherit the caller's environment.
func TestPluginEnvironment(t *testing.T) {
	t.Setenv("CALLER_SECRET", "hunter2")
	plugin := filepath.Join(t.TempDir(), "plugin")
	script := "#!/bin/sh\nexec env\n"
	if err := os.WriteFile(plugin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	environ := append(os.Environ(), "CNI_COMMAND=ADD")
	out, err := newExec().ExecPlugin(t.Context(), plugin, nil, environ)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(out); strings.Contains(text, "hunter2") || !strings.Contains(text, "CNI_COMMAND=ADD\n") || !strings.Contains(text, "PATH=") {
		t.Errorf("the plugin's environment is %s", text)
	}
	if !strings.Contains(strings.Join(environ, "\n"), "hunter2") {
		t.Error("control failed: the secret is not in the environment that libcni passes")
	}
}
