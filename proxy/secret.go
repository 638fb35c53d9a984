package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// Files of a proxy that inserts secrets, next to its configuration.
const (
	secretsFile = "secrets.json"
	rootsFile   = "roots.pem"
)

// secretsDir returns the directory with the secrets of the process that inserts them.
func (m *Manager) secretsDir(name string, s State) string {
	if s.Front() {
		return filepath.Join(m.FrontDir(name), "config")
	}
	return filepath.Join(m.Dir(name), "config")
}

// StoreSecrets writes the secrets of a proxy that inserts them, encoded by package inject,
// and the authorities that may sign for their hosts. Only the user of the process that
// inserts them can read the secrets; the bottle's directory is on tmpfs.
func (m *Manager) StoreSecrets(name string, s State, secrets, roots []byte) error {
	if err := os.WriteFile(filepath.Join(m.secretsDir(name, s), rootsFile), roots, 0o644); err != nil {
		return fmt.Errorf("write certificate authorities: %w", err)
	}
	return m.writeSecrets(name, s, secrets)
}

// LoadSecrets reads what StoreSecrets has written for a proxy with a state. There is no file, and no
// error, if secrets is nil.
func (m *Manager) LoadSecrets(name string, s State) (secrets, roots []byte, err error) {
	dir := m.secretsDir(name, s)
	secrets, err = os.ReadFile(filepath.Join(dir, secretsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err == nil {
		roots, err = os.ReadFile(filepath.Join(dir, rootsFile))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read secrets of the proxy: %w", err)
	}
	return secrets, roots, nil
}

// writeSecrets replaces the file of secrets.
func (m *Manager) writeSecrets(name string, s State, data []byte) error {
	uid := runtime.ProxyUID
	if s.Front() {
		uid = segment.FrontUID
	}
	if err := atomicfile.WriteFor(filepath.Join(m.secretsDir(name, s), secretsFile), data, 0o400, uid); err != nil {
		return fmt.Errorf("write secrets of the proxy: %w", err)
	}
	return nil
}

// SetSecret replaces the value of a secret that a bottle's proxy injects, and returns when
// requests that begin then get the new one. Source is one of package policy. After an error
// the old value is in force.
func (m *Manager) SetSecret(ctx context.Context, name, variable, source string, value secret.Value) error {
	if err := m.rules.Secret(source, variable); err != nil {
		return err
	}
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	old, changed, err := m.changedSecrets(name, variable, value)
	if err != nil {
		return err
	}
	if err := m.applySecrets(ctx, name, changed); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("set %s of %s: %w", variable, name, err), m.applySecrets(undo, name, old))
	}
	return nil
}

// changedSecrets returns the file of secrets, and how it is with another value.
func (m *Manager) changedSecrets(name, variable string, value secret.Value) (old, changed []byte, err error) {
	old, ca, secrets, err := m.readSecrets(name)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(secrets, func(s inject.Secret) bool { return s.Name == variable })
	if i < 0 {
		return nil, nil, noSecret(name, variable, secrets)
	}
	secrets[i].Value = value
	// The proxy would refuse an invalid value, too, but with all that it reads.
	if err := inject.Check(ca, secrets); err != nil {
		return nil, nil, err
	}
	changed, err = inject.Encode(ca, secrets)
	return old, changed, err
}

// readSecrets reads and decodes a proxy's file of secrets. It returns no secrets for a
// bottle without injection.
func (m *Manager) readSecrets(name string) (data []byte, ca *inject.CA, secrets []inject.Secret, err error) {
	state, err := m.Load(name)
	if err != nil || !state.Inject {
		return nil, nil, nil, err
	}
	if data, err = os.ReadFile(filepath.Join(m.secretsDir(name, state), secretsFile)); err != nil {
		return nil, nil, nil, fmt.Errorf("read secrets of the proxy: %w", err)
	}
	ca, secrets, err = inject.Decode(data)
	return data, ca, secrets, err
}

// CheckGiven reports an error if one of a session's variables is injected by the bottle's
// proxy, because the agent would get its value. What is written on the command line is given
// on purpose, and as open as there.
func (m *Manager) CheckGiven(name string, vars []provision.Variable) error {
	vars = slices.DeleteFunc(slices.Clone(vars), func(v provision.Variable) bool {
		return v.Source == manifest.SourceLiteral || v.Source == provision.SourceArgument
	})
	if len(vars) == 0 {
		return nil
	}
	_, _, secrets, err := m.readSecrets(name)
	if err != nil {
		return err
	}
	for _, v := range vars {
		if slices.ContainsFunc(secrets, func(s inject.Secret) bool { return s.Name == v.Name }) {
			return &hint.Error{
				Err:  fmt.Errorf("%s of %s is injected: its agent must not get the value", v.Name, name),
				Hint: fmt.Sprintf("leave %s out: the session has its placeholder. `bottle secret set` changes the value", v.Name),
			}
		}
	}
	return nil
}

func noSecret(name, variable string, known []inject.Secret) error {
	fix := "name the hosts that get the variable with inject in the manifest, and run the agent again"
	if len(known) > 0 {
		var names []string
		for _, s := range known {
			names = append(names, s.Name)
		}
		fix = "injected variables: " + strings.Join(names, ", ")
	}
	return &hint.Error{Err: fmt.Errorf("%s of %s is not injected", variable, name), Hint: fix}
}

// applySecrets puts a file of secrets into force. A proxy that is not running reads it when
// it starts.
func (m *Manager) applySecrets(ctx context.Context, name string, data []byte) error {
	state, err := m.Load(name)
	if err != nil {
		return err
	}
	wait, err := m.prepareReload(ctx, m.injecting(name, state))
	if err != nil {
		return err
	}
	defer wait.close()
	if err := m.writeSecrets(name, state, data); err != nil {
		return err
	}
	return m.reload(wait)
}
