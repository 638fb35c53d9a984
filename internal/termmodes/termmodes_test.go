package termmodes

import "testing"

func TestTracker(t *testing.T) {
	for name, c := range map[string]struct{ output, restore, set string }{
		"nothing":           {"text \x1b[2J\x1b[10;20H", "", ""},
		"alternate screen":  {"\x1b[?1049h", "\x1b[?1049l", ""},
		"left again":        {"\x1b[?1049h\x1b[?1049l", "", ""},
		"older alternate":   {"\x1b[?47h", "\x1b[?47l", ""},
		"hidden cursor":     {"\x1b[?25l", "\x1b[?25h", "\x1b[?25l"},
		"shown again":       {"\x1b[?25l\x1b[?25h", "", ""},
		"mouse":             {"\x1b[?1000;1006h", "\x1b[?1000l\x1b[?1006l", "\x1b[?1000h\x1b[?1006h"},
		"bracketed paste":   {"\x1b[?2004h", "\x1b[?2004l", "\x1b[?2004h"},
		"in pieces":         {"\x1b[?20" + "04h", "\x1b[?2004l", "\x1b[?2004h"},
		"keypad":            {"\x1b=", "\x1b>", "\x1b="},
		"cursor's style":    {"\x1b[4 q", "\x1b[0 q", "\x1b[4 q"},
		"margins":           {"\x1b[2;10r", "\x1b7\x1b[r\x1b8", ""},
		"margins reset":     {"\x1b[2;10r\x1b[r", "", ""},
		"colour":            {"\x1b[1;31mred", "\x1b[m", ""},
		"colour ended":      {"\x1b[1;31mred\x1b[0m", "", ""},
		"keyboard":          {"\x1b[>1u\x1b[>3u\x1b[<u", "\x1b[<1u", "\x1b[>1u"},
		"keyboards":         {"\x1b[>1u\x1b[?1049h\x1b[>5u", "\x1b[<1u\x1b[?1049l\x1b[<1u", "\x1b[>5u"},
		"modified keys":     {"\x1b[>4;2m", "\x1b[>4m", "\x1b[>4;2m"},
		"full reset":        {"\x1b[?1049h\x1b[?25l\x1bc", "", ""},
		"cut off":           {"\x1b[?25l\x1b]2;tit", "\x1b\\\x1b[?25h", "\x1b[?25l"},
		"synchronised":      {"\x1b[?2026h", "\x1b[?2026l", ""},
		"in a string":       {"\x1b]2;\\[?1049h\a", "", ""},
		"not private modes": {"\x1b[4h\x1b[25l", "", ""},
		"unknown":           {"\x1b[?31337h", "", ""},
	} {
		tracker := New()
		for i := range len(c.output) { // one byte at a time
			_, _ = tracker.Write([]byte(c.output[i : i+1]))
		}
		if got := tracker.Restore(); got != c.restore {
			t.Errorf("%s: Restore() = %q, want %q", name, got, c.restore)
		}
		if got := tracker.Set(); got != c.set {
			t.Errorf("%s: Set() = %q, want %q", name, got, c.set)
		}
		// What it restores is the default state.
		_, _ = tracker.Write([]byte(tracker.Restore()))
		if got := tracker.Restore(); got != "" {
			t.Errorf("%s: after Restore, %q is left", name, got)
		}
	}
}

func FuzzTracker(f *testing.F) {
	f.Add([]byte("\x1b[?1049h\x1b[>1u\x1b[m\x1b[;r\x1b[!p"))
	f.Fuzz(func(t *testing.T, output []byte) {
		tracker := New()
		_, _ = tracker.Write(output)
		_, _ = tracker.Write([]byte(tracker.Restore()))
		if left := tracker.Restore(); left != "" {
			t.Errorf("after %q and its restoration, %q is left", output, left)
		}
	})
}
