package images

import (
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/transfer"
)

// States of a Progress.
const (
	StateWaiting   = "waiting"
	StateActive    = "downloading" // or uploading, or packing: Done grows
	StateUnpacking = "unpacking"
	StateDone      = "done"
	StateExists    = "already exists"
)

// Progress is the progress of one part of an image. Sizes are in bytes.
type Progress struct {
	ID    string // a layer's digest, or a working directory's path
	State string // one of the State constants
	Done  int64
	Total int64 // 0: unknown
}

// ProgressFunc is called for every change, never concurrently, and never after the
// call it was passed to has returned. It may be nil.
type ProgressFunc func(Progress)

// gate serialises progress reports until it is closed: the client's stream may
// deliver events after the transfer has returned, and may drop the last ones.
type gate struct {
	mu     sync.Mutex
	fn     ProgressFunc
	open   map[string]Progress // unfinished parts, by ID
	closed bool
}

func newGate(fn ProgressFunc) *gate { return &gate{fn: fn, open: map[string]Progress{}} }

func (g *gate) report(p Progress) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fn == nil || g.closed {
		return
	}
	g.open[p.ID] = p
	if p.State == StateDone || p.State == StateExists {
		delete(g.open, p.ID)
	}
	g.fn(p)
}

// close stops reporting. After a success it first reports unfinished parts as done.
func (g *gate) close(success bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if !success || g.fn == nil {
		return
	}
	for _, p := range g.open {
		p.State, p.Done = StateDone, p.Total
		g.fn(p)
	}
}

// layerProgress translates the Transfer service's progress of a layer. Progress of
// manifests, configurations and the transfer itself is not reported.
func layerProgress(p transfer.Progress) (Progress, bool) {
	if p.Desc == nil || !strings.Contains(p.Desc.MediaType, "layer") && !strings.Contains(p.Desc.MediaType, "rootfs") {
		return Progress{}, false
	}
	out := Progress{ID: p.Desc.Digest.String(), Done: p.Progress, Total: p.Desc.Size}
	switch p.Event {
	case "waiting":
		out.State = StateWaiting
	case "downloading", "uploading":
		out.State = StateActive
	case "extracting":
		out.State = StateUnpacking
	case "complete", "extracted":
		out.State, out.Done = StateDone, p.Desc.Size
	case "already exists":
		out.State, out.Done = StateExists, p.Desc.Size
	default:
		return Progress{}, false
	}
	return out, true
}
