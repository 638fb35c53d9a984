package main

import (
	"log/slog"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	programs "github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/policy"
)

// system is the host's configuration, and the rules for the caller.
type system struct {
	config *policy.Config
	rules  *policy.Rules
}

// system reads the files of the host's administrator, once.
func (a *app) system() (system, error) {
	if a.sys != nil {
		return *a.sys, nil
	}
	dir := a.policyDir
	if dir == "" {
		dir = policy.Dir
	}
	var s system
	var err error
	if s.config, err = policy.LoadConfig(dir); err != nil {
		return s, err
	}
	if s.rules, err = policy.For(caller.Current(), dir); err != nil {
		return s, err
	}
	a.sys = &s
	return s, nil
}

// setting is a setting of the host that a flag or a variable overrides.
type setting struct {
	key, flag, variable string
	value               func(bottle.Config) string
}

var settings = []setting{
	{policy.Address, "--address", hostconfig.Address, func(c bottle.Config) string { return c.Address }},
	{policy.Namespace, "--namespace", hostconfig.Namespace, func(c bottle.Config) string { return c.Namespace }},
	{policy.Snapshotter, "", hostconfig.Snapshotter, func(c bottle.Config) string { return c.Snapshotter }},
	{policy.RunDir, "", hostconfig.RunDir, func(c bottle.Config) string { return c.RunDir }},
	{policy.StateDir, "", hostconfig.StateDir, func(c bottle.Config) string { return c.StateDir }},
	{policy.CNIPath, "", hostconfig.CNIPath, func(c bottle.Config) string { return c.CNIPath }},
	{policy.CNIConf, "", hostconfig.CNIConf, func(c bottle.Config) string { return c.CNIConf }},
	{policy.HostsDir, "--hosts-dir", hostconfig.HostsDir, func(c bottle.Config) string { return c.HostsDir }},
	{policy.Buildkit, "", hostconfig.Buildkit, func(c bottle.Config) string { return c.BuildkitHost }},
}

// hosts returns the host's configuration: the system's, or else the defaults.
func (s system) hosts() bottle.Config {
	return configOf(func(key string) string { return s.config.Values[key] })
}

// config returns the configuration: flags override the environment, which overrides the
// user's configuration, which overrides the system's. For a user of sudo all but the last need
// root's consent.
func (a *app) config() (bottle.Config, error) {
	sys, err := a.system()
	if err != nil {
		return bottle.Config{}, err
	}
	chosen, err := a.chosen(sys)
	if err != nil {
		return bottle.Config{}, err
	}
	hosts := sys.hosts()
	cfg := configOf(func(key string) string { return chosen[key].value })
	var problems hint.Problems
	for _, one := range settings {
		problems.Add(sys.config.Choice(caller.Current(), sys.rules, one.key, chosen[one.key].how(), one.value(cfg), one.value(hosts)))
	}
	if err := problems.Err(); err != nil {
		return bottle.Config{}, err
	}
	cfg.Guest, cfg.ProxyProgram = embeddedProgram("guest"), embeddedProgram("proxy")
	cfg.Runsc = embeddedProgram("runsc")
	// They are a part of this program's file.
	if cfg.Programs, err = programs.Identity("/proc/self/exe"); err != nil {
		return bottle.Config{}, err
	}
	cfg.Rules, cfg.Owner = sys.rules, caller.Current().Owner()
	cfg.Audit = a.auditLog()
	if !a.quiet {
		a.progress = a.newProgress()
		cfg.Progress = a.progress.update
	}
	cfg.Notice = func(text string) { a.note("%s", visible(text)) }
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	return cfg, nil
}
