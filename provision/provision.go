// Package provision decides which files and environment variables an agent finds in
// its bottle: its prompt, skills, git identity, ssh configuration and the settings of
// its kind. It computes them from a plan and the image alone and writes nothing.
//
// Everything is in place before the agent starts, in one of two places. What may be
// stored on disk becomes a file of the agent's root file system. Secrets, and all other
// data that must not reach a disk, go to the guest directory, which is on tmpfs.
package provision

import (
	"cmp"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
)

// Paths inside the agent's container. GuestDir is one directory on tmpfs, read-only
// inside. The guest program is mounted in it; it is PID 1 and begins every session.
const (
	GuestDir  = "/.bottle"
	GuestInit = GuestDir + "/init"
	GuestEnv  = GuestDir + "/env" // secret variables
	GuestRun  = GuestDir + "/run" // a tmpfs of the sandbox, writable by the agent
)

// WorkDirFile holds the image's working directory, in the guest directory.
const WorkDirFile = "workdir"

// Agent is what a plan says about the files and variables of its agent.
type Agent struct {
	// Kind is the coding agent that the files are for; nil: the default.
	Kind *agents.Kind
	// Unattended: the agent acts without asking.
	Unattended bool
	Hostname   string
	Variables  []Variable
	Prompt     string
	Skills     []rootfile.File // paths begin with the skill's name
	MCP        []agents.Server // its MCP servers
	Git        *manifest.Git   // nil: no identity
	SSH        []SSHAccess
	Trust      Trust
	// Logins have placeholders for their secrets.
	Logins []Login
	// Address and ProxyHost are the agent's own address and its proxy's, or the text by
	// which variables refer to them; empty: those of the internal segment.
	Address, ProxyHost string
}

// Image is what provisioning needs to know about the agent's image.
type Image struct {
	Home     string   // HOME of the agent's processes
	UserHome string   // the user's home in the image's passwd file; ssh uses it
	WorkDir  string   // absolute
	Env      []string // NAME=VALUE
	UID      uint32   // of the agent's user
}

// GuestFile is a file or a directory in the guest directory.
type GuestFile struct {
	Name string      // relative path
	Mode fs.FileMode // fs.ModeDir for a directory
	Data []byte
	// Private makes the agent's user the owner; otherwise it is root.
	Private bool
}

// RootFiles returns the files of the agent's root file system.
func (a Agent) RootFiles(img Image) []rootfile.File {
	return slices.Concat(
		[]rootfile.File{{Path: GuestDir, Mode: fs.ModeDir | 0o755, MountPoint: true}},
		etcFiles(a.Hostname),
		a.HomeFiles(img),
		sshFiles(img.UserHome),
		a.trustFiles(img),
	)
}

// HomeFiles returns those that the agent's user can write: its skills, and the settings
// of git and of its kind.
func (a Agent) HomeFiles(img Image) []rootfile.File {
	home := img.Home
	if dir, ok := a.setting(img, "HOME"); ok {
		home = dir
	}
	return slices.Concat(
		skillFiles(a.place(img, home, a.kind().Skills), a.Skills),
		gitFiles(home, a.Git),
		a.kindFiles(img, home),
		a.loginFiles(img, home),
	)
}

// Environ returns the part of the agent's environment that may be stored: the
// proxy's address, defaults and literal values. The manifest, the command line and
// the image override the defaults.
func (a Agent) Environ(img Image) []string {
	proxy, direct := a.proxyURL(), a.direct()
	env := []string{
		"HTTPS_PROXY=" + proxy, "HTTP_PROXY=" + proxy, "NO_PROXY=" + direct,
		"https_proxy=" + proxy, "http_proxy=" + proxy, "no_proxy=" + direct,
	}
	env = append(env, promptEnv(a.Prompt)...)
	defaults := slices.Concat(a.proxyDefaults(), a.kindEnv(img.UID), a.trustEnv(img))
	if len(SSHKeys(a.SSH)) > 0 {
		defaults = append(defaults, "SSH_AUTH_SOCK="+GuestSSHSocket)
	}
	for _, kv := range defaults {
		name, _, _ := strings.Cut(kv, "=")
		if !a.sets(img, name) {
			env = append(env, kv)
		}
	}
	for _, v := range a.Variables {
		if !v.IsSecret() {
			env = append(env, v.Name+"="+v.Literal)
		}
	}
	return env
}

func (a Agent) proxyHost() string { return cmp.Or(a.ProxyHost, segment.Proxy.Addr().String()) }

func (a Agent) proxyURL() string {
	return "http://" + a.proxyHost() + ":" + strconv.Itoa(segment.ProxyPort)
}

// direct returns the sandbox's own names and addresses, for NO_PROXY. They are plain
// addresses, because many clients read neither ranges nor brackets.
func (a Agent) direct() string {
	return strings.Join([]string{"localhost", "127.0.0.1", "127.0.1.1", "::1", "0.0.0.0", cmp.Or(a.Address, segment.Agent.Addr().String()), a.Hostname}, ",")
}

// proxyDefaults returns the variables of clients that do not read HTTP_PROXY: Node's
// fetch, Yarn from version 2 on, Maven and Gradle. Java's default for hosts without a
// proxy (http.nonProxyHosts) has the loopback addresses; an option would replace it.
func (a Agent) proxyDefaults() []string {
	proxy, host, port := a.proxyURL(), a.proxyHost(), strconv.Itoa(segment.ProxyPort)
	java := "-Dhttp.proxyHost=" + host + " -Dhttp.proxyPort=" + port +
		" -Dhttps.proxyHost=" + host + " -Dhttps.proxyPort=" + port +
		// Maven 3.9's own transport reads the options above only with this one.
		" -Daether.connector.http.useSystemProperties=true"
	return []string{
		"NODE_USE_ENV_PROXY=1",
		"YARN_HTTP_PROXY=" + proxy, "YARN_HTTPS_PROXY=" + proxy,
		"MAVEN_OPTS=" + java, "GRADLE_OPTS=" + java,
	}
}

// GuestFiles returns the content of the guest directory, parents first.
func (a Agent) GuestFiles(img Image) []GuestFile {
	var secrets []Variable
	for _, v := range a.Variables {
		if v.IsSecret() {
			secrets = append(secrets, v)
		}
	}
	files := []GuestFile{
		{Name: "init", Mode: 0o755}, // the guest program is mounted on it
		{Name: "run", Mode: fs.ModeDir | 0o700},
		{Name: WorkDirFile, Mode: 0o644, Data: []byte(img.WorkDir)},
		{Name: path.Base(GuestEnv), Mode: 0o400, Data: EnvFile(secrets), Private: true},
	}
	if a.Prompt != "" {
		files = append(files, GuestFile{Name: path.Base(PromptFile), Mode: 0o600, Data: []byte(a.Prompt), Private: true})
	}
	if len(a.Trust.CA) > 0 {
		files = append(files, GuestFile{Name: path.Base(GuestCA), Mode: 0o644, Data: a.Trust.CA})
	}
	return append(files, sshGuestFiles(a.SSH)...)
}

// LateFiles are GuestFiles for an agent whose sandbox was started without its variables:
// the file of secret variables has all of its environment.
func (a Agent) LateFiles(img Image) []GuestFile {
	files := a.GuestFiles(img)
	for i, f := range files {
		if f.Name != path.Base(GuestEnv) {
			continue
		}
		var env []byte
		for _, kv := range a.Environ(img) {
			env = append(append(env, kv...), 0)
		}
		files[i].Data = slices.Concat(env, f.Data)
	}
	return files
}

// etcFiles give the agent a host name and no resolver: the proxy resolves names.
func etcFiles(hostname string) []rootfile.File {
	hosts := "127.0.0.1\tlocalhost\n127.0.1.1\t" + hostname + "\n"
	return []rootfile.File{
		{Path: "/etc/hosts", Mode: 0o644, Root: true, Data: []byte(hosts)},
		{Path: "/etc/hostname", Mode: 0o644, Root: true, Data: []byte(hostname + "\n")},
		{Path: "/etc/resolv.conf", Mode: 0o644, Root: true, Data: []byte("# The egress proxy resolves names.\n")},
	}
}

// setting returns a variable that is not a secret, from the manifest or else the
// image, if it is an absolute path.
func (a Agent) setting(img Image, name string) (string, bool) {
	for _, v := range a.Variables {
		if v.Name == name && !v.IsSecret() {
			return v.Literal, filepath.IsAbs(v.Literal)
		}
	}
	for _, kv := range img.Env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value, filepath.IsAbs(value)
		}
	}
	return "", false
}

// sets reports whether the manifest, the command line or the image sets a variable.
func (a Agent) sets(img Image, name string) bool {
	return a.has(name) ||
		slices.ContainsFunc(img.Env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// has reports whether the agent has a variable of its own, in addition to the image's.
func (a Agent) has(name string) bool {
	return slices.ContainsFunc(a.Variables, func(v Variable) bool { return v.Name == name })
}
