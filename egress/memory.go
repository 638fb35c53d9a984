package egress

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
)

// Bounds of the proxy's memory. An agent, or a server that it may reach, can send
// anything on every connection that the proxy has: what is buffered of it has a
// maximum for each message and a budget for all of them together. The proxy's
// process stays far below the memory limit of its cgroup (see memoryLimit).
const (
	// maxHeadBytes and maxHeadLines limit the head of a request or response. A
	// header line takes lineCost bytes as an entry of a map, however short it is.
	maxHeadBytes = 64 << 10
	maxHeadLines = 256
	lineCost     = 160
	// freeCost is what every connection may buffer. It has room for an ordinary
	// head, so that one is served (a health check, too) when the budget is spent.
	freeCost = 8 << 10
	// headBudget is what all connections together may buffer beyond that.
	headBudget = 16 << 20
	// helloCost is what a byte of a TLS ClientHello costs: crypto/tls and the
	// proxy both keep it, in buffers that grow by doubling.
	helloCost = 4
	// maxForwards limits concurrent plain HTTP requests. Each has buffers and
	// goroutines for two connections, about 150 KiB.
	maxForwards = 256
	// maxLookups limits concurrent DNS lookups, each with answers of up to 64 KiB.
	maxLookups = 64
	// memoryLimit makes the garbage collector work harder as the process gets
	// near it.
	memoryLimit = 96 << 20
)

// BuiltinMemory is the least memory limit of the built-in proxy's task, in bytes.
const BuiltinMemory int64 = 256 << 20

// memory is the budget, and the bounds of what is not charged to it.
type memory struct {
	used     atomic.Int64
	budget   int64
	lines    int   // of a head
	forwards int64 // plain requests in progress
}

func newMemory() *memory {
	return &memory{budget: headBudget, lines: maxHeadLines, forwards: maxForwards}
}

func (m *memory) take(n int64) bool {
	if m.used.Add(n) <= m.budget {
		return true
	}
	m.used.Add(-n)
	return false
}

// charge is what one message takes of the budget.
type charge struct {
	memory *memory
	n      int64
}

// set changes the charge to a message of this cost. If the budget does not have
// it, the charge stays as it is.
func (c *charge) set(cost int64) bool {
	more := max(0, cost-freeCost) - c.n
	if more > 0 && !c.memory.take(more) {
		return false
	}
	if more < 0 {
		c.memory.used.Add(more)
	}
	c.n += more
	return true
}

func (c *charge) release() {
	if c.n != 0 {
		c.memory.used.Add(-c.n)
		c.n = 0
	}
}

// headMeter counts what is read from a connection while the head of a message is
// expected. It makes reading fail when the head has too many lines, or does not
// fit the budget, before a parser has made a map of it.
//
// It does not know where a head ends in the last buffer that was read: a head
// that was buffered with the message before it is counted by settle.
type headMeter struct {
	what string // for errors: "request" or "response"

	mu     sync.Mutex
	charge charge
	on     bool
	bytes  int64
	lines  int
	empty  bool // the line that is being read is
	err    error
}

func newHeadMeter(what string, m *memory) *headMeter {
	return &headMeter{what: what, charge: charge{memory: m}}
}

// start expects the next head.
func (h *headMeter) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.charge.release()
	h.on, h.bytes, h.lines, h.empty, h.err = true, 0, 0, false, nil
}

// failed returns the error that reading has to end with.
func (h *headMeter) failed() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// count adds data that was read.
func (h *headMeter) count(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.on || h.err != nil {
		return
	}
	head := h.head(p)
	h.bytes += int64(len(head))
	h.lines += bytes.Count(head, []byte("\n"))
	h.err = h.check(h.bytes, h.lines)
}

// head returns the part of p that belongs to the head: all, or up to an empty
// line. What follows that may be a body.
func (h *headMeter) head(p []byte) []byte {
	for i, c := range p {
		switch {
		case c == '\n' && h.empty:
			h.empty = false // if there is more to read, that is a head, too
			return p[:i+1]
		case c == '\n':
			h.empty = true
		case c != '\r':
			h.empty = false
		}
	}
	return p
}

func (h *headMeter) check(size int64, lines int) error {
	switch {
	case lines > h.charge.memory.lines:
		return h.refusal(http.StatusRequestHeaderFieldsTooLarge, "length", fmt.Sprintf("%s has more than %d header lines", h.what, h.charge.memory.lines))
	case size > maxHeadBytes:
		return h.refusal(http.StatusRequestHeaderFieldsTooLarge, "length", fmt.Sprintf("%s header is longer than %d bytes", h.what, maxHeadBytes))
	case !h.charge.set(size + int64(lines)*lineCost):
		return h.refusal(http.StatusServiceUnavailable, "ratelimit", "the headers of all open connections together are too large")
	}
	return nil
}

// refusal is the client's error for a request, and a gateway's for a response.
func (h *headMeter) refusal(status int, scanner, reason string) *refusalError {
	if h.what == "response" {
		status, scanner = http.StatusBadGateway, "dial"
	}
	return &refusalError{status: status, scanner: scanner, reason: reason}
}

// settle ends the count with the head as it was parsed. The charge stays until
// release or the next start.
func (h *headMeter) settle(first string, header http.Header) error {
	size, lines := int64(len(first)), 0
	for name, values := range header {
		for _, v := range values {
			size += int64(len(name) + len(v))
			lines++
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on = false
	if h.err != nil {
		return h.err
	}
	return h.check(size, lines)
}

// take hands the charge over to the caller.
func (h *headMeter) take() charge {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.charge
	h.charge.n = 0
	return c
}

// release ends the count and returns the charge to the budget.
func (h *headMeter) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on = false
	h.charge.release()
}
