package provision

import (
	"path"
	"slices"

	"github.com/bot-bottle/bottle/internal/loginfile"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// Login is a file with a program's logins, of which the agent gets a copy with placeholders.
type Login struct {
	Format string `json:"format"` // of package loginfile
	From   string `json:"from"`   // the caller's file
	// Secrets are those that are injected. The file's other secrets are left out.
	Secrets []Variable `json:"secrets"`
	// Renewed says that bottle renews the login in the user's file before it ends.
	Renewed bool `json:"renewed,omitempty"`
	// File is what was read. Its secrets must not be in the agent's copy.
	File *loginfile.File `json:"-"`
}

// loginFiles are the copies of files with logins. The values of their secrets are
// placeholders here.
func (a Agent) loginFiles(img Image, home string) []rootfile.File {
	var files []rootfile.File
	for _, l := range a.Logins {
		format, ok := loginfile.Get(l.Format)
		if !ok {
			continue // the manifest was checked
		}
		to := path.Join(home, format.Path)
		if dir, ok := a.setting(img, format.Variable); ok && format.Dir {
			to = path.Join(dir, path.Base(format.Path))
		} else if ok {
			to = dir
		}
		values := map[string]string{}
		for _, s := range l.Secrets {
			values[s.Name] = s.Secret.Reveal()
		}
		files = append(files, rootfile.File{Path: to, Mode: 0o600, Edit: func([]byte) ([]byte, error) { return l.File.Write(values) }})
	}
	return slices.Clip(files)
}
