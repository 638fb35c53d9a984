package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/policy"
)

// Request is what the user has asked for.
type Request struct {
	// Packages installs what the host's package manager has in a suitable version.
	Packages bool
	// Sources are searched for release files, in this order.
	Sources []Files
	// Checksums are those of the user or of a bundle; they precede the pinned ones.
	Checksums Checksums
}

// Plan is what Apply will do.
type Plan struct {
	Parts   []Part   `json:"parts"`
	Changes []Change `json:"changes"`
	// Start is the command that starts containerd on a host without systemd.
	Start string `json:"start,omitempty"`

	cfg     Config
	req     Request
	rec     *record
	choices []choice // the release files to fetch
	fetched map[string]fetched
	// unpacked are the programs of the release files that were read, by their names.
	unpacked map[string]map[string]unpacked
	actions  []action
}

// action makes one change.
type action struct {
	change Change
	do     func(context.Context, *Plan) error
}

func (p *Plan) step(c Change, do func(context.Context, *Plan) error) {
	p.Changes = append(p.Changes, c)
	p.actions = append(p.actions, action{c, do})
}

// Prepare finds what the host lacks and plans how to provide it. All problems are reported
// together.
func Prepare(ctx context.Context, cfg Config, req Request) (*Plan, error) {
	rec, err := cfg.readRecord()
	if err != nil {
		return nil, err
	}
	h := cfg.inspect(ctx, rec)
	p := &Plan{Changes: []Change{}, cfg: cfg, req: req, rec: rec}
	var problems hint.Problems
	if req.Packages {
		problems.Add(p.packages(ctx, h))
	}
	problems.Add(p.releases(h))
	p.Parts = h.parts
	if h.private {
		p.private(h)
	}
	problems.Add(p.config(h))
	p.file(tmpfilesPath, embedded("tmpfiles.conf"))
	p.units(h)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// releases plans the files of the missing parts, and other ones of the parts that setup has
// installed before.
func (p *Plan) releases(h *host) error {
	missing := h.missing()
	if len(missing) > 0 && len(p.req.Sources) == 0 {
		return p.noSource(missing)
	}
	var problems hint.Problems
	for _, r := range releases {
		ours := len(p.req.Sources) > 0 && slices.ContainsFunc(targets(r), p.rec.has)
		if !ours && !slices.Contains(missing, r.part) {
			continue
		}
		c, err := choose(r, p.cfg.Arch, p.req.Checksums)
		if err == nil {
			err = p.available(c)
		}
		if err != nil {
			problems.Add(err)
			continue
		}
		if p.programs(c) {
			p.choices = append(p.choices, c)
			part := h.part(r.part)
			part.Source = appendText(part.Source, c.String())
		}
		switch r.part {
		case PartContainerd:
			h.private = true
		case PartCNI:
			h.cniPath = privateCNI
		}
	}
	return problems.Err()
}

func (c choice) String() string {
	if c.pinned != "" {
		return fmt.Sprintf("%s (pinned version %s)", c.name, c.pinned)
	}
	return fmt.Sprintf("%s (sha %s…)", c.name, c.digest[:12])
}

func appendText(list, text string) string {
	if list == "" {
		return text
	}
	return list + ", " + text
}

// targets are the paths of a release's programs, sorted.
func targets(r release) []string {
	var out []string
	for _, to := range r.programs {
		out = append(out, to)
	}
	slices.Sort(out)
	return out
}

// noSource is the error about missing parts for which nothing was named.
func (p *Plan) noSource(missing []string) error {
	var names []string
	for _, r := range releases {
		if slices.Contains(missing, r.part) {
			names = append(names, r.glob(p.cfg.Arch))
		}
	}
	advice := fmt.Sprintf("name a source: --bundle FILE, or --from DIRECTORY|URL with %s", strings.Join(names, ", "))
	if !p.req.Packages {
		advice += ", or --packages for what the host's packages have"
	}
	return &hint.Error{Err: errors.New("missing " + strings.Join(missing, ", ")), Hint: advice}
}

// available checks that a file is in one of the sources, as far as they can be listed.
func (p *Plan) available(c choice) error {
	for _, s := range p.req.Sources {
		if names := s.Names(); names == nil || slices.Contains(names, c.name) {
			return nil
		}
	}
	return missingFile(p.req.Sources, c)
}

// private plans the configuration of setup's own containerd.
func (p *Plan) private(h *host) {
	p.file(containerdConf, embedded("containerd.toml"))
	h.address = PrivateAddress
	if p.cfg.systemd() {
		p.file(unitPath, embedded(unitName))
		return
	}
	p.Start = privateBin + "/containerd --config " + containerdConf
}

// embedded is a file of this package; its name is constant.
func embedded(name string) string {
	data, err := files.ReadFile("files/" + name)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// config plans what the system configuration must say.
func (p *Plan) config(h *host) error {
	path := p.cfg.configFile()
	current, err := policy.LoadConfig(p.cfg.path(policy.Dir))
	if err != nil {
		return err
	}
	var lines []string
	for _, s := range [][2]string{{policy.Address, h.address}, {policy.CNIPath, h.cniPath}} {
		key, want := s[0], s[1]
		switch have := current.Values[key]; have {
		case want:
		case "":
			lines = append(lines, key+": "+want)
		default:
			if want != "" {
				return &hint.Error{Err: fmt.Errorf("%s in %s is %s, and must be %s", key, path, have, want), Hint: "change it, or remove the line"}
			}
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if current.Path == "" {
		p.file(path, "version: 1\n"+strings.Join(lines, "\n")+"\n")
		return nil
	}
	old, err := os.ReadFile(p.cfg.path(path))
	if err != nil {
		return err
	}
	text := strings.TrimRight(string(old), "\n") + "\n" + strings.Join(lines, "\n") + "\n"
	if _, err := policy.ParseConfig(path, []byte(text)); err != nil {
		return &hint.Error{Err: fmt.Errorf("cannot add to %s: %s", path, strings.Join(lines, ", ")), Hint: "add this to the file"}
	}
	if st, _ := p.state(path); st == stateOurs {
		p.file(path, text)
		return nil
	}
	p.edit(path, string(old), text, strings.Join(lines, ", "))
	return nil
}

// units plans the start of containerd.
func (p *Plan) units(h *host) {
	switch {
	case !p.cfg.systemd():
	case h.startUnit != "":
		p.unit(h.startUnit, "")
	case h.private:
		changed := slices.ContainsFunc(p.actions, func(a action) bool {
			return slices.Contains([]string{unitPath, containerdConf, privateBin + "/containerd"}, a.change.Target)
		})
		if changed || p.rec.index(kindUnit, unitName) < 0 || strings.HasPrefix(h.part(PartContainerd).Found, "stopped") {
			p.unit(unitName, "socket "+PrivateAddress)
		}
	}
}
