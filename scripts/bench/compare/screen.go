package compare

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// WaitFor reads until a text appears, of which a program may write each word apart.
func WaitFor(r io.Reader, text string) error {
	var seen bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		seen.Write(buf[:n])
		if strings.Contains(words(seen.String()), words(text)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("no %q on the screen: %w\n%q", text, err, seen.String())
		}
	}
}

// words returns a text without spaces and the sequences that move the cursor over them.
func words(text string) string {
	for {
		begin := strings.Index(text, "\x1b[")
		if begin < 0 {
			return strings.ReplaceAll(text, " ", "")
		}
		end := begin + 2
		for end < len(text) && (text[end] < '@' || text[end] > '~') {
			end++
		}
		text = text[:begin] + text[min(end+1, len(text)):]
	}
}
