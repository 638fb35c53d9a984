package images

import (
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/transfer"
)

// States of a Progress.
const (
	StateWaiting    = "waiting"
	StateActive     = "downloading" // or uploading, or packing: Done grows
	StateUnpacking  = "unpacking"
	StateDone       = "done"
	StateThereAlike = "already there"
)

// Progress tells how far one part of an image is. Sizes are in bytes.
type Progress struct {
	ID    string // of a layer: its digest; of a working directory: its path
	State string // one of the State constants
	Done  int64
	Total int64 // 0: not known
}

// ProgressFunc is called for every change, never twice at once, and not after
// the call it was given to has returned. Nil: nothing is told.
type ProgressFunc func(Progress)

// gate hands progress on, one at a time, until it is closed: the client's
// stream may still deliver after the transfer has returned, and may not deliver
// what came last.
type gate struct {
	mu     sync.Mutex
	fn     ProgressFunc
	open   map[string]Progress // what has not ended, by ID
	closed bool
}

func newGate(fn ProgressFunc) *gate { return &gate{fn: fn, open: map[string]Progress{}} }

func (g *gate) tell(p Progress) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fn == nil || g.closed {
		return
	}
	g.open[p.ID] = p
	if p.State == StateDone || p.State == StateThereAlike {
		delete(g.open, p.ID)
	}
	g.fn(p)
}

// close ends the telling; after a success nothing remains half done.
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

// layerProgress translates the Transfer service's progress of a layer; of what
// else it transfers (manifests, configurations, itself) nothing is told.
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
		out.State, out.Done = StateThereAlike, p.Desc.Size
	default:
		return Progress{}, false
	}
	return out, true
}
