package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/loginfile"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/nearest"
	"github.com/bot-bottle/bottle/sshagent"
)

// Parse parses and validates a manifest. The path is used in messages and as the
// manifest's Path. The error reports all problems, each with file, line and column.
func Parse(path string, data []byte) (m *Manifest, err error) {
	d := &decoder{file: path}
	if len(data) > maxManifest {
		d.failAt(position{path, 1, 1}, "shorten it: long prompts can be skills", "manifest is larger than %s", units.BytesSize(maxManifest))
		return nil, d.problems.Err()
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
			return
		case tooManyProblems:
		case tooLarge:
			d.tooLarge(r.at)
		default:
			panic(r)
		}
		m, err = nil, d.problems.Err()
	}()
	root, ok := d.document(data)
	if !ok {
		return nil, d.problems.Err()
	}
	m = &Manifest{Path: path, Bottles: map[string]*Bottle{}, Agents: map[string]*Agent{}}
	d.manifest(root, m)
	if err := d.problems.Err(); err != nil {
		return nil, err
	}
	return m, nil
}

func (d *decoder) tooLarge(at position) {
	what := fmt.Sprintf("too many values: more than %d", maxNodes)
	if d.visited <= maxNodes {
		what = "too much text: more than " + units.BytesSize(maxText)
	}
	d.problems = append(d.problems, &hint.Error{
		Err:  fmt.Errorf("%s: %s, with aliases expanded", at, what),
		Hint: "shorten the manifest",
	})
}

func (d *decoder) manifest(n *yaml.Node, m *Manifest) {
	if kind(n) == kindEmpty {
		d.fail(n, startManifest, emptyManifest)
		return
	}
	version := false
	agents := func(*yaml.Node) {}
	var agentsNode *yaml.Node
	d.mapping(n, "the manifest", map[string]func(*yaml.Node){
		"version": func(n *yaml.Node) { version = true; d.integer(n, "version", 1, 1) },
		"bottles": func(n *yaml.Node) {
			d.entries(n, "bottles", func(key, value *yaml.Node) {
				m.Bottles[key.Value] = d.bottle(key, value)
			})
		},
		// Agents refer to bottles that may be defined after them.
		"agents": func(n *yaml.Node) {
			agentsNode = n
			agents = func(n *yaml.Node) {
				d.entries(n, "agents", func(key, value *yaml.Node) {
					m.Agents[key.Value] = d.agent(key, value, m)
				})
			}
		},
	})
	agents(agentsNode)
	if len(d.problems) == 0 && !version {
		d.fail(n, startManifest, "missing version")
	}
}

func (d *decoder) bottle(key, n *yaml.Node) *Bottle {
	b := &Bottle{}
	what := "bottle " + quoted(key.Value)
	d.name(key, "bottle name")
	image := false
	d.mapping(n, what, map[string]func(*yaml.Node){
		"image": func(n *yaml.Node) {
			image = true
			b.Image = d.image(n)
		},
		"build":  func(n *yaml.Node) { b.Build = d.build(n) },
		"env":    func(n *yaml.Node) { b.Env = d.env(n) },
		"logins": func(n *yaml.Node) { b.Logins = d.logins(n) },
		"egress": func(n *yaml.Node) {
			d.mapping(n, "egress", map[string]func(*yaml.Node){
				"allow":         func(n *yaml.Node) { d.allow(n, &b.Egress) },
				"deny":          func(n *yaml.Node) { b.Egress.Deny = d.rules(n, "deny") },
				"allow_private": func(n *yaml.Node) { b.Egress.AllowPrivate = d.rules(n, "allow_private") },
			})
		},
		"proxy":  func(n *yaml.Node) { b.Proxy = d.proxy(n) },
		"ssh":    func(n *yaml.Node) { b.SSH = d.ssh(n) },
		"git":    func(n *yaml.Node) { b.Git = d.git(n) },
		"limits": func(n *yaml.Node) { b.Limits = d.limits(n) },
	})
	// A build without an image and a Dockerfile configures the build of the default image.
	if b.Build != nil && !image && b.Build.Context+b.Build.Dockerfile+b.Build.Target != "" {
		d.fail(key, "name the image that the build creates", "missing image of %s, which has a build", what)
	}
	return b
}

func (d *decoder) build(n *yaml.Node) *Build {
	b := &Build{Args: map[string]string{}, Secrets: map[string]string{}}
	var egress *yaml.Node
	pairs := func(what string, out map[string]string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			d.entries(n, what, func(key, value *yaml.Node) {
				out[key.Value], _ = d.text(value, what+" "+quoted(key.Value), true)
			})
		}
	}
	d.mapping(n, "build", map[string]func(*yaml.Node){
		"context":    d.setName(&b.Context, "context"),
		"dockerfile": d.setName(&b.Dockerfile, "dockerfile"),
		"target":     d.setName(&b.Target, "target"),
		"args":       pairs("args", b.Args),
		"secrets":    pairs("secrets", b.Secrets),
		"network": func(n *yaml.Node) {
			b.HostNetwork = d.oneOf(n, "network", "host", "proxy") == "host"
		},
		"egress": func(n *yaml.Node) {
			egress, b.Allow = n, []string{}
			d.mapping(n, "egress of a build", map[string]func(*yaml.Node){
				"allow": func(n *yaml.Node) { b.Allow = append(b.Allow, d.rules(n, "allow")...) },
			})
		},
	})
	if b.HostNetwork && b.Allow != nil {
		d.fail(egress, "remove one of them: the host's network has no policy", "unexpected egress with network: host")
	}
	return b
}

func (d *decoder) env(n *yaml.Node) []Variable {
	var out []Variable
	d.entries(n, "env", func(key, value *yaml.Node) {
		if !ValidEnvName(key.Value) {
			d.fail(key, EnvNameHint, "invalid variable name %s", shown(key.Value))
			return
		}
		if ReservedEnvName(key.Value) {
			d.fail(key, "remove it: bottle sets the proxy variables", "reserved variable name %s", key.Value)
			return
		}
		v := Variable{Name: key.Value, At: d.at(key)}
		if d.variable(value, &v) {
			out = append(out, v)
		}
	})
	return out
}

func (d *decoder) variable(n *yaml.Node, v *Variable) bool {
	target := d.follow(n)
	switch {
	case target.Kind == yaml.ScalarNode && target.Tag == "!!null":
		v.From = v.Name
		return true
	case target.Kind != yaml.MappingNode:
		s, ok := d.text(n, v.Name, true)
		v.Literal = &s
		return ok
	}
	before := len(d.problems)
	fields := d.variableFields(v)
	for i := 0; i < len(target.Content); i += 2 {
		// An unknown key is likely the value itself, which must not be shown.
		if key := target.Content[i]; fields[key.Value] == nil && nearest.Of(key.Value, sortedKeys(fields)) == "" {
			d.fail(key, fmt.Sprintf("known keys: %s; write a plain value as %s: value", strings.Join(sortedKeys(fields), ", "), v.Name), "unknown key in %s", v.Name)
			return false
		}
	}
	d.mapping(n, v.Name, fields)
	if len(d.problems) > before {
		return false
	}
	return d.checkVariable(n, target, v)
}

func (d *decoder) variableFields(v *Variable) map[string]func(*yaml.Node) {
	return map[string]func(*yaml.Node){
		"from": func(n *yaml.Node) {
			d.setName(&v.From, "from")(n)
			if v.From != "" && !ValidEnvName(v.From) {
				d.fail(n, EnvNameHint, "invalid variable name in from")
			}
		},
		"prompt": d.setName(&v.Prompt, "prompt"),
		"file":   d.setName(&v.File, "file"),
		"command": func(n *yaml.Node) {
			d.items(n, "command", func(item *yaml.Node) {
				if s, ok := d.name(item, "command argument"); ok {
					v.Command = append(v.Command, s)
				}
			})
			if list := d.follow(n); list.Kind == yaml.SequenceNode && len(list.Content) == 0 {
				d.fail(n, "name the program, such as [pass, show, x]", "invalid command: empty")
			}
		},
		"ttl":    func(n *yaml.Node) { v.TTL = d.ttl(n) },
		"inject": func(n *yaml.Node) { d.inject(n, d.injection(v)) },
		"as":     func(n *yaml.Node) { d.injectAs(n, d.injection(v)) },
	}
}

func (d *decoder) injection(v *Variable) *Injection {
	if v.Inject == nil {
		v.Inject = &Injection{}
	}
	return v.Inject
}

// checkVariable checks which keys of a variable are set together.
func (d *decoder) checkVariable(n, target *yaml.Node, v *Variable) bool {
	sources, inject := 0, (*yaml.Node)(nil)
	as, ttl := false, false
	for i := 0; i < len(target.Content); i += 2 {
		switch target.Content[i].Value {
		case "inject":
			inject = target.Content[i+1]
		case "as":
			as = true
		case "ttl":
			ttl = true
		default:
			sources++
		}
	}
	switch {
	case sources > 1 || sources == 0 && inject == nil:
		d.fail(n, "", "invalid %s: expected exactly one of from, prompt, file and command", v.Name)
		return false
	case as && inject == nil:
		d.fail(n, "name the hosts in inject, such as inject: [api.example.com]", "invalid %s: as without inject", v.Name)
		return false
	case as && len(v.Inject.Hosts) == 0:
		d.fail(inject, "remove as, or name the hosts in inject", "invalid inject in %s: false, with as", v.Name)
		return false
	case ttl && len(v.Command) == 0:
		d.fail(n, "remove ttl, or name a command that prints the value", "invalid %s: ttl without command", v.Name)
		return false
	case ttl && (v.Inject == nil || len(v.Inject.Hosts) == 0):
		d.fail(n, "name the hosts in inject: a value that the agent holds cannot be renewed", "invalid %s: ttl without inject", v.Name)
		return false
	case sources == 0:
		v.From = v.Name
	}
	return true
}

// Bounds of a ttl, in its units. A shorter one would keep the host busy.
var (
	ttlText  = lazyregexp.New(`^([1-9][0-9]{0,2})([mh])$`)
	ttlUnits = map[string]time.Duration{"m": time.Minute, "h": time.Hour}
)

// ttl reads how long a value is valid.
func (d *decoder) ttl(n *yaml.Node) time.Duration {
	s, ok := d.name(n, "ttl")
	if !ok {
		return 0
	}
	m := ttlText().FindStringSubmatch(s)
	if m == nil {
		d.fail(n, "", "invalid ttl %q: expected minutes or hours, such as 50m or 12h", s)
		return 0
	}
	count, _ := strconv.Atoi(m[1]) // as the expression has it
	return time.Duration(count) * ttlUnits[m[2]]
}

// injectHint explains inject.
const injectHint = "expected false or DNS names with an optional port or presets, such as [api.example.com, \"@github\"]"

// inject reads the hosts that a variable is for, or false.
func (d *decoder) inject(n *yaml.Node, out *Injection) {
	target := d.follow(n)
	if target.Kind == yaml.ScalarNode && target.Tag == "!!bool" && target.Value == "false" {
		return
	}
	if target.Kind != yaml.SequenceNode || len(target.Content) == 0 {
		d.fail(n, injectHint, "invalid inject: got %s", kindOrEmptyList(target))
		return
	}
	d.items(n, "inject", func(item *yaml.Node) {
		s, ok := d.name(item, "inject entry")
		if !ok {
			return
		}
		hosts, err := egress.ParseInject(s)
		switch {
		case strings.Contains(s, "@") && !egress.IsPreset(s):
			// The text before it may be a password, which must not be shown.
			d.fail(item, injectHint, "invalid inject entry: contains an @")
		case err != nil:
			fix := cmp.Or(hint.Of(err), injectHint)
			d.fail(item, fix, "invalid inject entry: %v", err)
		default:
			for _, host := range hosts {
				if slices.Contains(out.Hosts, host) {
					d.fail(n, "remove one of them", "duplicate inject entry %s", quoted(host))
					continue
				}
				out.Hosts = append(out.Hosts, host)
			}
		}
	})
}

func kindOrEmptyList(n *yaml.Node) string {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		return "an empty list"
	}
	return kind(n)
}

// logins reads names of formats of login files.
func (d *decoder) logins(n *yaml.Node) []string {
	known := loginfile.Names()
	var out []string
	d.items(n, "logins", func(item *yaml.Node) {
		s, ok := d.name(item, "logins entry")
		switch {
		case !ok:
		case !slices.Contains(known, s):
			d.fail(item, "known logins: "+strings.Join(known, ", "), "unknown logins entry %s", quoted(s))
		case slices.Contains(out, s):
			d.fail(n, "remove one of them", "duplicate logins entry %s", quoted(s))
		default:
			out = append(out, s)
		}
	})
	return out
}

// injectAs reads the parts of a request in which a value is inserted.
func (d *decoder) injectAs(n *yaml.Node, out *Injection) {
	const fix = "expected headers, query, body or names of headers, such as [Authorization]"
	target := d.follow(n)
	if target.Kind == yaml.SequenceNode && len(target.Content) == 0 {
		d.fail(n, fix, "invalid as: got an empty list")
		return
	}
	d.items(n, "as", func(item *yaml.Node) {
		s, ok := d.name(item, "as entry")
		switch {
		case !ok:
		case strings.ContainsFunc(s, notInToken):
			d.fail(item, fix, "invalid as entry %s", quoted(s))
		default:
			out.As = append(out.As, s)
		}
	})
}

// notInToken reports whether a character cannot be part of a header's name (RFC 9110,
// section 5.6.2).
func notInToken(r rune) bool {
	const token = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return !strings.ContainsRune(token, r)
}

// rules reads entries of the egress policy, which package egress validates.
func (d *decoder) rules(n *yaml.Node, what string) []string {
	var out []string
	d.items(n, what, func(item *yaml.Node) {
		if s, ok := d.rule(item, what); ok {
			out = append(out, s)
		}
	})
	return out
}

// rule reads one entry.
func (d *decoder) rule(item *yaml.Node, what string) (string, bool) {
	s, ok := d.name(item, what+" entry")
	if !ok {
		return "", false
	}
	if what == "allow_private" && egress.IsPreset(s) {
		d.fail(item, "write the hosts that may be in private networks", "unexpected preset in allow_private")
		return "", false
	}
	if strings.Contains(s, "@") && !egress.IsPreset(s) {
		// The text before it may be a password, which must not be shown.
		fix := "write only the host"
		if strings.HasPrefix(s, "@") {
			fix = `write only the host, or the name of a preset, as in "@debian"`
		}
		d.fail(item, fix, "invalid %s entry: contains an @", what)
		return "", false
	}
	entries := egress.Entries{Allow: []string{s}}
	if what == "allow_private" {
		entries = egress.Entries{AllowPrivate: []string{s}}
	}
	if _, err := entries.Policy(); err != nil {
		// The wrapped error is without the index, which is always that of the first entry.
		d.fail(item, hint.Of(err), "%s", cmp.Or(errors.Unwrap(err), err))
		return "", false
	}
	return s, true
}

func (d *decoder) proxy(n *yaml.Node) Proxy {
	var p Proxy
	var imageNode *yaml.Node
	d.mapping(n, "proxy", map[string]func(*yaml.Node){
		"kind": func(n *yaml.Node) {
			p.Kind, _ = d.name(n, "kind")
			if p.Kind != "" && p.Kind != ProxyPipelock && p.Kind != ProxyBuiltin {
				d.fail(n, "use pipelock or builtin", "unknown proxy kind %s", quoted(p.Kind))
			}
		},
		"image": func(n *yaml.Node) {
			imageNode = n
			p.Image = d.image(n)
		},
		"version": func(n *yaml.Node) {
			p.Version, _ = d.name(n, "version")
			if p.Version == "" {
				return
			}
			if _, err := egress.ParsePipelockVersion(p.Version); err != nil {
				d.fail(n, "", "%s", err)
			}
		},
		"memory": func(n *yaml.Node) { p.Memory = d.size(n, "memory", maxMemory, "1PiB") },
	})
	if p.Version != "" && p.Image == "" {
		d.fail(n, "add an image, or remove the version", "unexpected version without an image")
	}
	if p.Kind == ProxyBuiltin && p.Image != "" {
		d.fail(imageNode, "remove the image, or use kind: pipelock", "unexpected image for the built-in proxy")
	}
	return p
}

// image reads an image name.
func (d *decoder) image(n *yaml.Node) string {
	name, ok := d.name(n, "image")
	if !ok {
		return name
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		why := strings.TrimPrefix(err.Error(), "invalid reference format: ")
		d.fail(n, "use a name such as registry.example/name:tag", "invalid image name %s: %s", quoted(name), why)
	}
	return name
}

func (d *decoder) ssh(n *yaml.Node) []SSHHost {
	var out []SSHHost
	lines := map[string]int{} // by Host
	d.items(n, "ssh", func(item *yaml.Node) {
		h := SSHHost{Port: 22, Mode: SSHAgent, PubkeyAuthentication: PubkeyHostBound}
		explicit := false // PubkeyAuthentication
		before := len(d.problems)
		d.mapping(item, "ssh entry", map[string]func(*yaml.Node){
			"Host":         d.setName(&h.Host, "Host"),
			"HostName":     d.setName(&h.HostName, "HostName"),
			"User":         d.setName(&h.User, "User"),
			"Port":         func(n *yaml.Node) { h.Port = int(d.integer(n, "Port", 1, math.MaxUint16)) },
			"IdentityFile": d.setName(&h.IdentityFile, "IdentityFile"),
			"HostKey":      func(n *yaml.Node) { h.HostKey = d.hostKey(n) },
			"mode":         func(n *yaml.Node) { h.Mode = d.oneOf(n, "mode", SSHAgent, SSHCopy) },
			"PubkeyAuthentication": func(n *yaml.Node) {
				explicit = true
				h.PubkeyAuthentication = d.oneOf(n, "PubkeyAuthentication", PubkeyHostBound, PubkeyUnbound)
			},
		})
		if len(d.problems) > before {
			return
		}
		if h.HostName == "" {
			h.HostName = h.Host
		}
		switch {
		case h.Host == "":
			d.fail(item, "add the name that the agent uses", "missing Host in ssh entry")
		case lines[h.Host] > 0:
			d.fail(item, "rename one of them", "duplicate ssh Host %s: already defined in line %d", quoted(h.Host), lines[h.Host])
		case strings.ContainsAny(h.Host+h.HostName+h.User, " \t*?!#\"'"):
			d.fail(item, "remove spaces, quotes and patterns", "invalid ssh entry: Host, HostName and User must be single names")
		case explicit && h.Mode == SSHCopy:
			d.fail(item, "remove one of them: it has no effect", "unexpected PubkeyAuthentication with mode: copy")
		default:
			if _, err := egress.ParseSSHRule(h.Destination()); err != nil {
				d.fail(item, "", "%s", err)
				return
			}
			lines[h.Host] = item.Line
			out = append(out, h)
		}
	})
	return out
}

func (d *decoder) hostKey(n *yaml.Node) string {
	s, ok := d.name(n, "HostKey")
	if !ok {
		return ""
	}
	if _, err := sshagent.ParsePublic([]byte(s)); err != nil {
		d.fail(n, "copy the key from the output of ssh-keyscan, without the host name", "invalid HostKey: %s", err)
	}
	return s
}

// oneOf reads one of two words.
func (d *decoder) oneOf(n *yaml.Node, what, a, b string) string {
	s, ok := d.name(n, what)
	if ok && s != a && s != b {
		d.fail(n, "", "invalid %s: expected %s or %s, got %s", what, a, b, quoted(s))
	}
	return s
}

// Destination returns the host and port that the entry connects to.
func (h SSHHost) Destination() string { return h.HostName + ":" + strconv.Itoa(h.Port) }

func (d *decoder) git(n *yaml.Node) *Git {
	g := &Git{}
	d.mapping(n, "git", map[string]func(*yaml.Node){
		"name":  d.setName(&g.Name, "name"),
		"email": d.setName(&g.Email, "email"),
	})
	return g
}

// Bounds of limits. A sandbox does not start with less than minMemory.
const (
	minMemory = 64 << 20
	maxMemory = 1 << 50
	// A workspace is a file, whose size ext4 limits to 16 TiB.
	maxWorkspace = 8 << 40
	minPids      = 16
	maxPids      = 1 << 22 // the kernel's PID_MAX_LIMIT
	maxCPUs      = 4096
)

func (d *decoder) limits(n *yaml.Node) Limits {
	var l Limits
	d.mapping(n, "limits", map[string]func(*yaml.Node){
		"memory":    func(n *yaml.Node) { l.Memory = d.size(n, "memory", maxMemory, "1PiB") },
		"disk":      func(n *yaml.Node) { l.Disk = d.size(n, "disk", maxMemory, "1PiB") },
		"workspace": func(n *yaml.Node) { l.Workspace = d.size(n, "workspace", maxWorkspace, "8TiB") },
		"cpus": func(n *yaml.Node) {
			s, ok := d.text(n, "cpus", true)
			if !ok {
				return
			}
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || !(v >= 0.01 && v <= maxCPUs) {
				d.fail(n, "", "invalid cpus: expected a number from 0.01 to 4096, such as 2 or 1.5")
			}
			l.CPUs = v
		},
		"pids": func(n *yaml.Node) { l.Pids = d.integer(n, "pids", minPids, maxPids) },
	})
	return l
}

// size decodes a size of at least minMemory and at most most, which limit names.
func (d *decoder) size(n *yaml.Node, what string, most int64, limit string) int64 {
	s, ok := d.text(n, what, true)
	if !ok {
		return 0
	}
	v, err := units.RAMInBytes(s)
	if err != nil || v < minMemory || v > most {
		d.fail(n, "", "invalid %s %s: expected a size from 64MiB to %s, such as 512MiB or 4GiB", what, quoted(s), limit)
	}
	return v
}

func (d *decoder) agent(key, n *yaml.Node, m *Manifest) *Agent {
	a := &Agent{}
	what := "agent " + quoted(key.Value)
	if !printable(key.Value) {
		d.fail(key, "", "invalid agent name: contains a line break or an invisible character")
	} else if _, err := names.Slug(key.Value); err != nil {
		d.fail(key, hint.Of(err), "%s", err)
	}
	named := d.follow(n).Kind != yaml.MappingNode // which is reported instead
	var command *yaml.Node
	d.mapping(n, what, map[string]func(*yaml.Node){
		"bottle": func(n *yaml.Node) {
			named = true
			if a.Bottle, _ = d.name(n, "bottle"); a.Bottle != "" && m.Bottles[a.Bottle] == nil {
				d.unknownBottle(n, a.Bottle, m)
			}
		},
		"kind":       func(n *yaml.Node) { a.Kind = d.kind(n) },
		"unattended": func(n *yaml.Node) { a.Unattended = d.boolean(n, "unattended") },
		"command": func(n *yaml.Node) {
			command = n
			d.items(n, "command", func(item *yaml.Node) {
				if s, ok := d.text(item, "command argument", true); ok {
					a.Command = append(a.Command, s)
				}
			})
			if len(a.Command) > 0 && a.Command[0] == "" {
				d.fail(n, "put the name of the program first", "invalid command: empty program name")
			}
		},
		"prompt": func(n *yaml.Node) { a.Prompt, _ = d.text(n, "prompt", false) },
		"skills": func(n *yaml.Node) { a.Skills = d.skills(n) },
		"mcp":    func(n *yaml.Node) { a.MCP = d.servers(n) },
		"pool":   func(n *yaml.Node) { d.pool(n, a) },
	})
	switch {
	case !a.Unattended:
	case a.Kind == "":
		d.fail(key, "add kind: with the kind of the agent", "missing kind in %s, which is unattended", what)
	case len(a.Command) > 0 && !agents.Get(a.Kind).Runs(a.Command):
		d.fail(command, "remove command, or unattended", "unexpected command: %s cannot be made unattended in it", agents.Get(a.Kind).Title)
	}
	if !named {
		d.fail(key, "add bottle: with the name of a bottle", "missing bottle in %s", what)
	}
	return a
}

// pool reads the number of prepared bottles, or a mapping with it.
func (d *decoder) pool(n *yaml.Node, a *Agent) {
	size := func(what string) func(*yaml.Node) {
		return func(n *yaml.Node) { a.Pool = int(d.integer(n, what, 0, MaxPool)) }
	}
	if d.follow(n).Kind != yaml.MappingNode {
		size("pool")(n)
		return
	}
	sized := false
	d.mapping(n, "pool", map[string]func(*yaml.Node){
		"size": func(n *yaml.Node) { sized = true; size("size")(n) },
		"warm": func(n *yaml.Node) { a.Warm = d.boolean(n, "warm") },
	})
	if !sized {
		d.fail(n, "add size: with the number of bottles", "missing size in pool")
	}
}

// kind reads the name of a kind of agents.
func (d *decoder) kind(n *yaml.Node) string {
	name, ok := d.name(n, "kind")
	if !ok {
		return ""
	}
	if _, ok := agents.Lookup(name); ok {
		return name
	}
	fix := "known kinds: " + strings.Join(agents.Names(), ", ")
	if near := nearest.Of(name, agents.Names()); near != "" {
		fix = fmt.Sprintf("did you mean %q? %s", near, fix)
	}
	d.fail(n, fix, "unknown kind %s", quoted(name))
	return ""
}

// boolean reads true or false.
func (d *decoder) boolean(n *yaml.Node, what string) bool {
	target := d.follow(n)
	if target.Kind != yaml.ScalarNode || target.Tag != "!!bool" {
		d.fail(n, "", "invalid %s: expected true or false", what)
		return false
	}
	return strings.EqualFold(target.Value, "true")
}

func (d *decoder) unknownBottle(n *yaml.Node, name string, m *Manifest) {
	// A name that cannot be shown is an error of its own.
	names := slices.DeleteFunc(sortedKeys(m.Bottles), func(s string) bool { return s == "" || !printable(s) })
	fix := "add it under bottles"
	if near := nearest.Of(name, names); near != "" {
		fix = fmt.Sprintf("did you mean %q?", near)
	} else if len(names) > 0 {
		fix = "known bottles: " + strings.Join(names, ", ")
	}
	d.fail(n, fix, "unknown bottle %s", quoted(name))
}

// skills reads names of directories, which cannot refer to other places.
func (d *decoder) skills(n *yaml.Node) []string {
	var out []string
	d.items(n, "skills", func(item *yaml.Node) {
		s, ok := d.name(item, "skills entry")
		if ok && (strings.ContainsAny(s, `/\`) || strings.HasPrefix(s, ".")) {
			d.fail(item, "use the name of a skill's directory, without / and without a leading dot", "invalid skill name %s", quoted(s))
			return
		}
		out = append(out, s)
	})
	return out
}
