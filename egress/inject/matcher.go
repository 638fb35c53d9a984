package inject

import "bytes"

// matcher finds strings in a text in one pass, most of which it does not look at: after two
// bytes that are in none of the strings, none can begin before them (Wu and Manber, "A fast
// algorithm for multi-pattern searching", 1994).
type matcher struct {
	pairs []pair
	// window is how much of each string decides where to look next, and longest the length
	// of the longest one.
	window, longest int
	// shift is how far a window can move that ends with two bytes.
	shift [1 << 12]uint8
	first [256]bool // bytes with which strings begin
	// sameLength says that no replacement changes the length of a text.
	sameLength bool
}

// maxWindow is where longer ones gain little.
const maxWindow = 32

// newMatcher returns nil if there are no pairs. Each string has at least two bytes.
func newMatcher(pairs []pair) *matcher {
	if len(pairs) == 0 {
		return nil
	}
	m := &matcher{pairs: pairs, window: maxWindow, sameLength: len(sameLength(pairs)) == len(pairs)}
	for _, p := range pairs {
		m.window, m.longest = min(m.window, len(p.from)), max(m.longest, len(p.from))
		m.first[p.from[0]] = true
	}
	for i := range m.shift {
		m.shift[i] = uint8(m.window - 1)
	}
	for _, p := range pairs {
		for end := 1; end < m.window; end++ {
			at := hashBytes(p.from[end-1], p.from[end])
			m.shift[at] = min(m.shift[at], uint8(m.window-1-end))
		}
	}
	return m
}

func hashBytes(a, b byte) uint16 { return (uint16(a)<<5 ^ uint16(b)) & 0xfff }

// next returns the first pair in data, and the longest if several begin there; -1: none.
func (m *matcher) next(data []byte) (found pair, at int) {
	for end := m.window - 1; end < len(data); {
		if skip := m.shift[hashBytes(data[end-1], data[end])]; skip > 0 {
			end += int(skip)
			continue
		}
		at := end - m.window + 1
		for i := range m.pairs {
			if p := &m.pairs[i]; len(p.from) > len(found.from) && bytes.HasPrefix(data[at:], []byte(p.from)) {
				found = *p
			}
		}
		if found.from != "" {
			return found, at
		}
		end++
	}
	return pair{}, -1
}

// partial returns where the first beginning of a string is at the end of data, not before
// done, and up to where bytes are the same whether it continues or not.
func (m *matcher) partial(data []byte, done int) (begin, safe int) {
	begin, safe = len(data), len(data)
	for at := max(done, len(data)-m.longest+1); at < len(data); at++ {
		if !m.first[data[at]] {
			continue
		}
		for i := range m.pairs {
			if p, rest := &m.pairs[i], data[at:]; len(rest) < len(p.from) && beginsWith(p.from, rest) {
				begin, safe = min(begin, at), min(safe, at+p.common)
			}
		}
	}
	return begin, safe
}
