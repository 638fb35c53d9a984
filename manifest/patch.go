package manifest

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/caller"
)

// PatchAllow returns a unified diff that adds entries to a bottle's egress.allow, for
// "patch -p1" in the manifest's directory. It is empty if all entries are already present.
// Nothing is written. The manifest is read with the caller's rights.
func PatchAllow(c caller.Caller, manifest, bottleName string, entries []string) (patch string, err error) {
	data, err := c.ReadRegular(manifest, maxManifest+1)
	if err != nil {
		return "", fmt.Errorf("read manifest: %w", err)
	}
	changed := data
	for _, entry := range entries {
		parsed, err := egress.ParseListEntry(entry)
		if err != nil {
			return "", err
		}
		if changed, err = addToManifest(manifest, bottleName, changed, parsed); err != nil {
			return "", err
		}
	}
	return diff(filepath.Base(manifest), data, changed), nil
}

// patchContext is the number of context lines around a change.
const patchContext = 3

// diff returns a unified diff with one hunk, from the first to the last differing line.
func diff(name string, before, after []byte) string {
	if bytes.Equal(before, after) {
		return ""
	}
	a, b := lines(before), lines(after)
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	end := 0
	for end < min(len(a), len(b))-same && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	first, tail := max(0, same-patchContext), min(patchContext, end)
	var out strings.Builder
	fmt.Fprintf(&out, "--- a/%s\n+++ b/%[1]s\n@@ -%s +%s @@\n", name, hunk(first, len(a)-end+tail), hunk(first, len(b)-end+tail))
	write := func(mark string, lines []string) {
		for _, line := range lines {
			out.WriteString(mark + line)
			if !strings.HasSuffix(line, "\n") {
				out.WriteString("\n\\ No newline at end of file\n")
			}
		}
	}
	write(" ", a[first:same])
	write("-", a[same:len(a)-end])
	write("+", b[same:len(b)-end])
	write(" ", a[len(a)-end:len(a)-end+tail])
	return out.String()
}

func lines(data []byte) (out []string) {
	for line := range bytes.Lines(data) {
		out = append(out, string(line))
	}
	return out
}

// hunk formats the range of lines from first to end as in a unified diff.
func hunk(first, end int) string {
	if first == end {
		return fmt.Sprintf("%d,0", first)
	}
	return fmt.Sprintf("%d,%d", first+1, end-first)
}
