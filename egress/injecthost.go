package egress

import (
	"errors"
	"fmt"
	"slices"
)

// ParseHost parses a DNS name with an optional port, and returns it in lower-case ASCII
// with its port; the default port is 443.
func ParseHost(s string) (string, error) {
	r, err := parseRule(s)
	switch {
	case err != nil:
		return "", err
	case r.Host[0] == '*':
		return "", errors.New("a wildcard is not a single host")
	case r.address().IsValid():
		return "", errors.New("an address is not a DNS name")
	case r.LastPort != 0:
		return "", errors.New("a range of ports is not a single port")
	case r.Port == 0:
		r.Port = portHTTPS
	}
	return joinHostPort(r.Host, r.Port), nil
}

// injectPresets are the hosts that the credentials of an issuer are sent to. They allow
// nothing. Package registries are not here: their login files name their hosts.
var injectPresets = []Preset{
	{Name: "@anthropic", Use: "Anthropic's API", Hosts: []PresetHost{{Host: "api.anthropic.com"}}},
	{Name: "@dockerhub", Use: "Docker Hub", Hosts: []PresetHost{{Host: "auth.docker.io"}, {Host: "registry-1.docker.io"}}},
	{Name: "@ghcr", Use: "GitHub's container registry", Hosts: []PresetHost{{Host: "ghcr.io"}}},
	{Name: "@github", Use: "GitHub over https: git, gh, the API", Hosts: []PresetHost{{Host: "api.github.com"}, {Host: "github.com"}, {Host: "uploads.github.com"}}},
	{Name: "@gitlab", Use: "GitLab.com over https: git, the API", Hosts: []PresetHost{{Host: "gitlab.com"}}},
	{Name: "@google", Use: "Google's Gemini API", Hosts: []PresetHost{{Host: "generativelanguage.googleapis.com"}}},
	{Name: "@openai", Use: "OpenAI's API", Hosts: []PresetHost{{Host: "api.openai.com"}}},
}

// InjectPresets returns the presets of hosts that credentials are for, sorted by name.
func InjectPresets() []Preset { return slices.Clone(injectPresets) }

// ParseInject parses a host that a credential is for, as [ParseHost] does, or the name of a
// preset of such hosts.
func ParseInject(s string) ([]string, error) {
	if !IsPreset(s) {
		host, err := ParseHost(s)
		return []string{host}, err
	}
	i := slices.IndexFunc(injectPresets, func(p Preset) bool { return p.Name == s })
	if i < 0 {
		return nil, &UnknownPresetError{Name: s, among: injectPresets}
	}
	var hosts []string
	for _, h := range injectPresets[i].Hosts {
		host, err := ParseHost(h.Host)
		if err != nil {
			return nil, fmt.Errorf("preset %s: %w", s, err)
		}
		hosts = append(hosts, host)
	}
	return hosts, nil
}
