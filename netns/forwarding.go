package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/atomicfile"
)

// The functions in this file require the lock.

// saveForwarding saves, once, the settings that change when the bridge plugin
// turns ip_forward on: the kernel then sets all the others as well
// (inet_forward_change in net/ipv4/devinet.c).
func (m *Manager) saveForwarding() error {
	if _, err := os.Lstat(m.sysctlFile()); err == nil {
		return nil
	}
	keys := []string{"ipv4/ip_forward", "ipv4/conf/all/accept_redirects"}
	files, err := filepath.Glob(filepath.Join(sysctlDir, "ipv4/conf/*/forwarding"))
	if err != nil {
		return fmt.Errorf("list forwarding settings: %w", err)
	}
	for _, f := range files {
		keys = append(keys, strings.TrimPrefix(f, sysctlDir+"/"))
	}
	var text strings.Builder
	for _, key := range keys {
		value, err := readSysctl(key)
		if errors.Is(err, os.ErrNotExist) {
			continue // the interface was removed
		}
		if err != nil {
			return fmt.Errorf("save the host's %s: %w", key, err)
		}
		fmt.Fprintf(&text, "%s %s\n", key, value)
	}
	return atomicfile.Write(m.sysctlFile(), []byte(text.String()), 0o600)
}

// savedSettings reads what saveForwarding saved. It returns nil if there is no
// bottle.
func (m *Manager) savedSettings() ([]setting, error) {
	data, err := os.ReadFile(m.sysctlFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's saved settings: %w", err)
	}
	var out []setting
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		out = append(out, setting{key, value})
	}
	return out, nil
}

// savedLinks returns the links that the host had when saveForwarding was called,
// and those of them that it did not forward from. Both are nil if ip_forward was
// on.
func (m *Manager) savedLinks() (unforwarded, links []string, err error) {
	saved, err := m.savedSettings()
	if err != nil || !slices.Contains(saved, setting{"ipv4/ip_forward", "0"}) {
		return nil, nil, err
	}
	for _, s := range saved {
		name, ok := strings.CutSuffix(strings.TrimPrefix(s.key, "ipv4/conf/"), "/forwarding")
		if !ok || name == "all" || name == "default" {
			continue
		}
		links = append(links, name)
		if s.value == "0" {
			unforwarded = append(unforwarded, name)
		}
	}
	return unforwarded, links, nil
}

// enableForwarding turns ip_forward on again if it was turned off while bottles run,
// as `sysctl --system` may do. The rules that limit it must be written first.
func enableForwarding() error {
	value, err := readSysctl("ipv4/ip_forward")
	if err == nil && value != "1" {
		err = writeSysctl("ipv4/ip_forward", "1")
	}
	if err != nil {
		return fmt.Errorf("turn on the host's ip_forward: %w", err)
	}
	return nil
}

// restoreForwarding restores what saveForwarding saved. If ip_forward was on, nothing
// changed because of bottle, and what changed since is somebody else's.
func (m *Manager) restoreForwarding() error {
	saved, err := m.savedSettings()
	if err != nil || saved == nil {
		return err
	}
	if slices.Contains(saved, setting{"ipv4/ip_forward", "1"}) {
		saved = nil
	}
	var errs []error
	for _, s := range saved {
		now, err := readSysctl(s.key)
		if err == nil && now != s.value {
			err = writeSysctl(s.key, s.value)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("restore the host's %s: %w", s.key, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(m.sysctlFile()); err != nil {
		return fmt.Errorf("remove the host's saved settings: %w", err)
	}
	return nil
}
