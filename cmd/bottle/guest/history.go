package guest

import (
	"encoding/binary"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// Bounds of the kept output, in bytes. PID 1's memory counts towards the agent's limit.
const (
	historyBytes  = 1 << 20
	recordBytes   = 4 << 10 // a line that is longer is several records
	recordOverall = 64      // what a record costs besides its data
)

// record is output with the time of its beginning.
type record struct {
	at   time.Time
	kind proto.Kind // proto.KindStdout or proto.KindStderr
	data []byte
}

// history is the newest output of a proto.
type history struct {
	records []record
	bytes   int
}

// add appends output. A record is at most one line, so that each line has its time.
func (h *history) add(at time.Time, kind proto.Kind, data []byte) {
	for len(data) > 0 {
		n := 0
		for n < len(data) && n < recordBytes {
			if n++; data[n-1] == '\n' {
				break
			}
		}
		h.addPart(at, kind, data[:n])
		data = data[n:]
	}
	drop := 0
	for h.bytes > historyBytes {
		h.bytes -= len(h.records[drop].data) + recordOverall
		drop++
	}
	// Copied now and then, so that the dropped records are freed.
	h.records = h.records[drop:]
	if drop > 0 && cap(h.records) > 2*len(h.records) {
		h.records = append([]record{}, h.records...)
	}
}

func (h *history) addPart(at time.Time, kind proto.Kind, data []byte) {
	if n := len(h.records); n > 0 {
		last := &h.records[n-1]
		if last.kind == kind && last.data[len(last.data)-1] != '\n' && len(last.data)+len(data) <= recordBytes {
			last.data = append(last.data, data...)
			h.bytes += len(data)
			return
		}
	}
	h.records = append(h.records, record{at, kind, append([]byte{}, data...)})
	h.bytes += len(data) + recordOverall
}

// since returns frames with the output since a time.
func (h *history) since(t time.Time) [][]byte {
	var out [][]byte
	for _, r := range h.records {
		if !r.at.Before(t) {
			out = append(out, r.frame())
		}
	}
	return out
}

func (r record) frame() []byte {
	data := binary.BigEndian.AppendUint64(nil, uint64(r.at.UnixNano()))
	return proto.Frame(proto.KindLog, append(append(data, byte(r.kind)), r.data...))
}
