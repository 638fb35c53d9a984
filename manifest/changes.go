package manifest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// Changes lists the settings in which a manifest differs from an earlier one, by their
// keys. "+" marks a setting that was added and "-" one that was removed; of an agent or
// a bottle that was added or removed only the name is listed. The list is empty if only
// comments or the layout differ.
func Changes(before, after *Manifest) []string {
	return slices.Concat(
		differences("agents.", before.Agents, after.Agents, settingsOf((*Agent).settings)),
		differences("bottles.", before.Bottles, after.Bottles, settingsOf((*Bottle).settings)),
	)
}

// differences compares two mappings. Values that both have are compared by both, which
// gets the prefixed key.
func differences[T any](prefix string, before, after map[string]T, both func(key string, old, now T) []string) []string {
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	var out []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		old, was := before[key]
		now, is := after[key]
		switch {
		case !was:
			out = append(out, "+"+prefix+key)
		case !is:
			out = append(out, "-"+prefix+key)
		default:
			out = append(out, both(prefix+key, old, now)...)
		}
	}
	return out
}

// settingsOf compares the settings of two agents or two bottles.
func settingsOf[T any](settings func(T) map[string]any) func(key string, old, now T) []string {
	return func(key string, old, now T) []string {
		return differences(key+".", settings(old), settings(now), func(key string, old, now any) []string {
			if reflect.DeepEqual(old, now) {
				return nil
			}
			return []string{key}
		})
	}
}

// settings returns the settings that are not empty, by their keys.
func (a *Agent) settings() map[string]any {
	return notEmpty(map[string]any{"kind": a.Kind, "unattended": a.Unattended, "bottle": a.Bottle, "command": a.Command, "prompt": a.Prompt, "skills": a.Skills, "mcp": a.MCP, "pool": a.Pool, "pool.warm": a.Warm})
}

// settings returns the settings that are not empty, by their keys. Variables and ssh
// hosts are settings of their own.
func (b *Bottle) settings() map[string]any {
	out := map[string]any{
		"image": b.Image, "proxy": b.Proxy, "git": b.Git, "limits": b.Limits, "logins": b.Logins,
		"egress.allow": b.Egress.Allow, "egress.allow rules": b.Egress.Rules, "egress.deny": b.Egress.Deny, "egress.allow_private": b.Egress.AllowPrivate,
	}
	if build := b.Build; build != nil {
		out["build"] = true // an empty build is one
		maps.Copy(out, map[string]any{
			"build.context": build.Context, "build.dockerfile": build.Dockerfile, "build.target": build.Target,
			"build.args": build.Args, "build.secrets": build.Secrets,
			"build.network": build.HostNetwork, "build.egress": build.Allow,
		})
	}
	for _, v := range b.Env {
		v.At = position{} // a setting that has moved is the same
		out["env."+v.Name] = v
	}
	for _, h := range b.SSH {
		out[fmt.Sprintf("ssh %s", h.Host)] = h
	}
	return notEmpty(out)
}

// notEmpty removes the settings that have no value.
func notEmpty(settings map[string]any) map[string]any {
	maps.DeleteFunc(settings, func(_ string, value any) bool {
		v := reflect.ValueOf(value)
		return v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
	})
	return settings
}
