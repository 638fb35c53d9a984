package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/policy"
)

// userConfig is the user's own configuration file, in their home. It has the format of the
// system configuration.
const userConfig = hostconfig.UserFile

// choice is a value of a setting, with where it comes from.
type choice struct {
	value string
	// origin is a flag, a variable, the path of a file, or originDefault.
	origin string
}

const originDefault = "default"

// how names the origin in an error about the setting.
func (c choice) how() string {
	if filepath.IsAbs(c.origin) {
		return c.origin + ":"
	}
	return c.origin
}

// chosen returns the values of the settings that are set somewhere, by key.
func (a *app) chosen(sys system) (map[string]choice, error) {
	own, err := readUserConfig(caller.Current())
	if err != nil {
		return nil, err
	}
	flags := map[string]string{"--address": a.address, "--namespace": a.namespace, "--hosts-dir": a.hostsDir}
	out := map[string]choice{}
	for _, one := range settings {
		for _, c := range []choice{
			{flags[one.flag], one.flag}, {os.Getenv(one.variable), one.variable},
			{own.Values[one.key], own.Path}, {sys.config.Values[one.key], sys.config.Path},
		} {
			if c.value != "" {
				out[one.key] = c
				break
			}
		}
	}
	return out, nil
}

// configOf returns the configuration with the values of settings by their keys, and
// defaults for those that are empty.
func configOf(value func(key string) string) bottle.Config {
	return bottle.ConfigFromEnv(func(variable string) string {
		for _, one := range settings {
			if one.variable == variable {
				return value(one.key)
			}
		}
		return ""
	})
}

// readUserConfig reads the user's configuration with the user's rights, if it exists. A home
// directory that the user may not read, such as root's in HOME, has nothing of the user's.
func readUserConfig(who caller.Caller) (*policy.Config, error) {
	path := filepath.Join(who.Home, userConfig)
	if who.Home == "" {
		return &policy.Config{}, nil
	}
	text, err := who.ReadRegular(path, maxConfig)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return &policy.Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read your configuration: %w", err)
	}
	c, err := policy.ParseConfig(path, text)
	if err == nil && len(c.UsersMaySet) > 0 {
		err = withHint(fmt.Errorf(textUsersMaySet, path), hintUsersMaySet, filepath.Join(policy.Dir, policy.ConfigFile))
	}
	return c, err
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// originRow is a row of bottle config show --origin.
type originRow struct {
	Setting string `json:"setting"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`
}

// showOrigins prints each setting with the value in force and where it comes from. A value
// that the policy refuses is an error, as in every other command.
func (a *app) showOrigins(asJSON bool) error {
	sys, err := a.system()
	if err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	chosen, err := a.chosen(sys)
	if err != nil {
		return err
	}
	rows := []originRow{}
	for _, one := range settings {
		origin := chosen[one.key].origin
		if origin == "" {
			origin = originDefault
		}
		rows = append(rows, originRow{one.key, one.value(cfg), origin})
	}
	if asJSON {
		return a.printJSON(rows)
	}
	return printOrigins(a.stdout, rows)
}

func printOrigins(w io.Writer, rows []originRow) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "SETTING\tVALUE\tORIGIN")
	for _, r := range rows {
		value := r.Value
		if value == "" {
			value = "-"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", r.Setting, visible(value), visible(r.Origin))
	}
	return t.Flush()
}
