package loginfile

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// ghHost is an entry of gh's hosts.yml.
type ghHost struct {
	User     string            `yaml:"user,omitempty"`
	Token    string            `yaml:"oauth_token"`
	Protocol string            `yaml:"git_protocol,omitempty"`
	Users    map[string]ghUser `yaml:"users,omitempty"`
}

type ghUser struct {
	Token string `yaml:"oauth_token"`
}

func parseGH(data []byte) (*File, error) {
	var hosts map[string]ghHost
	if yaml.Unmarshal(data, &hosts) != nil {
		return nil, errForm
	}
	f := &File{}
	for host, h := range hosts {
		to := []string{host}
		switch {
		case host == "github.com":
			to = append(to, "api.github.com", "uploads.github.com")
		case strings.HasSuffix(host, ".ghe.com"):
			to = append(to, "api."+host)
		}
		f.add("gh", host, h.Token, to...)
	}
	f.write = func(values map[string]string) ([]byte, error) {
		out := map[string]ghHost{}
		for host, h := range hosts {
			value, ok := values[nameOf("gh", host)]
			if !ok {
				continue
			}
			out[host] = ghHost{User: h.User, Token: value, Protocol: h.Protocol}
			if h.User != "" {
				h = out[host]
				h.Users = map[string]ghUser{h.User: {value}}
				out[host] = h
			}
		}
		return yaml.Marshal(out)
	}
	return f, nil
}

// npmKept are the settings of npm that say where packages are.
func npmKept(key string) bool {
	return key == "registry" || strings.HasPrefix(key, "@") && strings.HasSuffix(key, ":registry")
}

// parseNPM reads tokens: "//HOST/PATH/:_authToken=TOKEN". A token that refers to a variable
// is none.
func parseNPM(data []byte) (*File, error) {
	type line struct{ key, value, secret string }
	var lines []line
	f := &File{}
	for text := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(text), "=")
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"'`)
		place, isToken := strings.CutSuffix(key, ":_authToken")
		host, _, _ := strings.Cut(strings.TrimPrefix(place, "//"), "/")
		switch {
		case !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";"):
		case npmKept(key) && !strings.Contains(value, "@"):
			lines = append(lines, line{key: key, value: value})
		case isToken && strings.HasPrefix(place, "//") && !strings.Contains(value, "${"):
			// Two places of one host can have different tokens.
			place = strings.Trim(place, "/")
			lines = append(lines, line{key: key, secret: nameOf("npm", place)})
			f.add("npm", place, value, host)
		}
	}
	f.write = func(values map[string]string) ([]byte, error) {
		var out bytes.Buffer
		for _, l := range lines {
			if l.secret == "" {
				fmt.Fprintf(&out, "%s=%s\n", l.key, l.value)
			} else if value, ok := values[l.secret]; ok {
				fmt.Fprintf(&out, "%s=%s\n", l.key, value)
			}
		}
		return out.Bytes(), nil
	}
	return f, nil
}

// parseNetrc reads a .netrc (curl's documentation, ftp(1)): machine, login and password.
func parseNetrc(data []byte) (*File, error) {
	type machine struct{ login, password string }
	machines := map[string]*machine{}
	var order []string
	var m *machine
	inMacro, next := false, ""
	for text := range strings.Lines(string(data)) {
		words := strings.Fields(text)
		if inMacro = inMacro && len(words) > 0; inMacro {
			continue
		}
		for _, w := range words {
			switch {
			case next != "":
				switch {
				case next == "machine" && machines[w] != nil:
					m = &machine{} // the first entry of a host counts
				case next == "machine":
					m = &machine{}
					machines[w] = m
					order = append(order, w)
				case m != nil && next == "login":
					m.login = w
				case m != nil && next == "password":
					m.password = w
				}
				next = ""
				continue
			case w == "default":
				m = nil // it is for every host
			case w == "macdef":
				inMacro = true
			case w == "machine" || w == "login" || w == "password" || w == "account":
				next = w
			}
			if inMacro || strings.HasPrefix(w, "#") {
				break
			}
		}
	}
	f := &File{}
	for host, m := range machines {
		f.add("netrc", host, m.password, host)
	}
	f.write = func(values map[string]string) ([]byte, error) {
		var out bytes.Buffer
		for _, host := range order {
			if value, ok := values[nameOf("netrc", host)]; ok {
				fmt.Fprintf(&out, "machine %s login %s password %s\n", host, machines[host].login, value)
			}
		}
		return out.Bytes(), nil
	}
	return f, nil
}

type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

type dockerAuth struct {
	Auth string `json:"auth"` // base64 of USER:PASSWORD
}

// dockerHosts returns the hosts that a registry's login is sent to: some have another one
// that exchanges it for a token.
func dockerHosts(key string) []string {
	_, rest, ok := strings.Cut(key, "://")
	if !ok {
		rest = key
	}
	host, _, _ := strings.Cut(rest, "/")
	switch {
	case host == "docker.io", strings.HasSuffix(host, ".docker.io"):
		return []string{"auth.docker.io", "registry-1.docker.io"}
	case host == "registry.gitlab.com":
		return []string{host, "gitlab.com"}
	}
	return []string{host}
}

func parseDocker(data []byte) (*File, error) {
	var config dockerConfig
	if json.Unmarshal(data, &config) != nil {
		return nil, errForm
	}
	f, users := &File{}, map[string]string{}
	for key, a := range config.Auths {
		text, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
		if err != nil || !ok {
			continue // a credential helper has it, or an identity token
		}
		users[key] = user
		f.add("docker", key, password, dockerHosts(key)...)
	}
	f.write = func(values map[string]string) ([]byte, error) {
		out := dockerConfig{Auths: map[string]dockerAuth{}}
		for key, user := range users {
			if value, ok := values[nameOf("docker", key)]; ok {
				out.Auths[key] = dockerAuth{base64.StdEncoding.EncodeToString([]byte(user + ":" + value))}
			}
		}
		return json.MarshalIndent(out, "", "  ")
	}
	return f, nil
}

// claudeLogin is Claude Code's file. The refresh token is not read here: it stays outside,
// where package claudelogin uses it.
type claudeLogin struct {
	OAuth struct {
		Access           string   `json:"accessToken"`
		Expires          int64    `json:"expiresAt"` // milliseconds since 1970
		Scopes           []string `json:"scopes,omitempty"`
		SubscriptionType string   `json:"subscriptionType,omitempty"`
	} `json:"claudeAiOauth"`
}

// claudeValid is how long the copy of an agent says that it is valid. What counts is the
// value that is inserted, which changes when the user's own file does.
const claudeValid = 365 * 24 * time.Hour

func parseClaude(data []byte) (*File, error) {
	var login claudeLogin
	if json.Unmarshal(data, &login) != nil {
		return nil, errForm
	}
	const host = "api.anthropic.com"
	f := &File{}
	f.add("claude", host, login.OAuth.Access, host)
	f.write = func(values map[string]string) ([]byte, error) {
		out := login
		out.OAuth.Access = values[nameOf("claude", host)]
		out.OAuth.Scopes = slices.Clone(login.OAuth.Scopes)
		out.OAuth.Expires = time.Now().Add(claudeValid).UnixMilli()
		return json.MarshalIndent(out, "", "  ")
	}
	return f, nil
}
