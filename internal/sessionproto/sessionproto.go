// Package sessionproto is the protocol between bottle on the host and PID 1 of a sandbox,
// which holds an agent's session: its terminal, its output and its exit code. PID 1
// listens on a socket in the sandbox, and a process of the guest program connects the
// socket to bottle, which is at the other end of that process's standard input and
// output. PID 1 also starts sessions that end with their clients. For such a connection
// bottle listens on a socket in a directory that is mounted in the sandbox, and tells PID 1
// so on its standard input. Neither side trusts the other: sizes are bounded.
package sessionproto

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Socket is where PID 1 listens, on a tmpfs that only the agent's user can enter. The
// agent itself can connect to it, and can harm no other session than its own.
const Socket = "/.bottle/run/session.sock"

// ClientSocket returns the name of the socket on which bottle waits for PID 1, in the guest
// directory. The agent cannot change that directory. It can take the place of PID 1, and can
// harm no other session than its own.
func ClientSocket(id string) string { return "session-" + id }

// GuestDir is where the guest directory is mounted.
const GuestDir = "/.bottle"

// IDLength is the length of a client's name, which is random: that of crypto/rand's Text.
const IDLength = 26

// Record encodes what announces a connection on PID 1's standard input. It is written at
// once: it is shorter than PIPE_BUF.
func Record(id string) []byte { return []byte(id + "\n") }

// ID decodes a line of PID 1's standard input. ok is false if it is not a record.
func ID(line []byte) (id string, ok bool) {
	id = strings.TrimSuffix(string(line), "\n")
	ok = len(id) == IDLength && len(line) == IDLength+1
	for _, r := range id {
		ok = ok && ('A' <= r && r <= 'Z' || '2' <= r && r <= '7')
	}
	return id, ok
}

// Kind is the type of a frame.
type Kind byte

// Frames from bottle to PID 1. The first one is a Request.
const (
	KindRequest Kind = 'r' // a Request
	KindInput   Kind = 'i' // input of the session
	KindEOF     Kind = 'e' // the end of the input, without a terminal
	KindResize  Kind = 'w' // a Size; the first one after an OpClaim asks for the screen
	KindSignal  Kind = 's' // one byte: the signal's number
	KindPing    Kind = 'p' // sent every PingInterval; nothing for PingTimeout means that the client is gone
	KindDetach  Kind = 'd' // the client leaves
)

// Frames from PID 1 to bottle.
const (
	KindStarted Kind = 'S' // the session runs
	KindStdout  Kind = 'o' // output
	KindStderr  Kind = 'O' // output, without a terminal
	KindLog     Kind = 'l' // 8 bytes of nanoseconds since 1970, one byte of KindStdout or KindStderr, output
	KindError   Kind = 'E' // a Failure; the last frame
	KindState   Kind = 'x' // a State; the last frame
	KindTaken   Kind = 't' // 4 bytes: how much of the input of an OpRun the process has got
)

// How often a client sends a ping, and when it is considered gone. A client that was
// killed on the host is noticed by nothing else: the shim keeps its pipes open.
const (
	PingInterval = 5 * time.Second
	PingTimeout  = time.Minute
)

// Requests.
const (
	OpRun    = "run"    // run Exec for this client
	OpStart  = "start"  // start the session, and attach to it if Attach is set
	OpClaim  = "claim"  // take over a session that was started with Warm
	OpAttach = "attach" // follow the session, with its screen redrawn
	OpLogs   = "logs"   // the output so far and, with Follow, what comes
	OpWait   = "wait"   // wait for the end
	OpState  = "state"  // the state now
	OpSignal = "signal" // send Signal
)

// Request begins a connection.
type Request struct {
	Op     string    `json:"op"`
	Size   Size      `json:"size"`             // of the client's terminal; zero: unknown
	Attach bool      `json:"attach,omitempty"` // OpStart
	Warm   bool      `json:"warm,omitempty"`   // OpStart: for an OpClaim; the client gets its log; PID 1 ends if the session does before
	Spec   *Spec     `json:"spec,omitempty"`   // OpStart
	Follow bool      `json:"follow,omitempty"` // OpLogs; OpWait: wait for the start, too
	Since  time.Time `json:"since"`            // OpLogs
	Signal int       `json:"signal,omitempty"` // OpSignal
	Exec   *Exec     `json:"exec,omitempty"`   // OpRun, and OpStart without Spec
}

// Window is how much input of an OpRun a client sends before PID 1 has confirmed any of it
// by KindTaken. So a process that does not read its input delays no other frame.
const Window = 256 << 10

// Exec describes a process that PID 1 is to find. Arguments and variables need not be text, so they
// are bytes.
type Exec struct {
	Command  [][]byte `json:"command"`
	EnvFiles []string `json:"envFiles"` // in the sandbox, read by PID 1
	Env      [][]byte `json:"env"`      // NAME=VALUE, override those of the files
	Dir      []byte   `json:"dir"`
	Must     bool     `json:"must"` // fail without the directory; otherwise it is created
	Terminal bool     `json:"terminal"`
	Stdin    bool     `json:"stdin"`
}

// Spec describes the process of a session.
type Spec struct {
	Path     string   `json:"path"`
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	Terminal bool     `json:"terminal"`
	Stdin    bool     `json:"stdin"` // without a terminal: input is forwarded; otherwise there is none
}

// Size is that of a terminal, in cells.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Failure says why a request has failed.
type Failure struct {
	Text string `json:"text"`
	Code int    `json:"code"` // exit code of a command that could not be run
}

// State describes a session.
type State struct {
	Started  time.Time `json:"started"` // zero: no session was started
	Ended    time.Time `json:"ended"`   // zero: it is running
	Code     int       `json:"code"`    // exit code, once it has ended
	Terminal bool      `json:"terminal"`
	Clients  int       `json:"clients"` // attached now
}

// Running reports whether the session has started and not ended.
func (s State) Running() bool { return !s.Started.IsZero() && s.Ended.IsZero() }

// MaxFrame is the largest content of a frame, in bytes. Output is sent in parts of at
// most Chunk bytes, or MaxOutput by an OpRun.
const (
	MaxFrame  = 4 << 20
	Chunk     = 32 << 10
	MaxOutput = 256 << 10
)

// Header is the size of a frame's kind and length.
const Header = 5

// Frame encodes a frame.
func Frame(kind Kind, data []byte) []byte {
	out := make([]byte, Header, Header+len(data))
	return Fill(append(out, data...), kind)
}

// Fill writes the header of a frame whose data are at buf[Header:].
func Fill(buf []byte, kind Kind) []byte {
	buf[0] = byte(kind)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(buf)-Header))
	return buf
}

// JSON encodes a frame with a value.
func JSON(kind Kind, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // only types of this package
	}
	return Frame(kind, data)
}

// Read reads a frame. The error is io.EOF between two frames.
func Read(r io.Reader) (Kind, []byte, error) { return readInto(r, nil) }

// Reader reads frames without a system call and a buffer for each.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader returns a reader that reads up to n bytes ahead.
func NewReader(r io.Reader, n int) *Reader { return &Reader{r: bufio.NewReaderSize(r, n)} }

// Read is the function Read, with data that the next call overwrites.
func (r *Reader) Read() (Kind, []byte, error) {
	kind, data, err := readInto(r.r, r.buf)
	if cap(data) <= MaxOutput {
		r.buf = data[:0]
	}
	return kind, data, err
}

// readInto uses buf if the data fit in.
func readInto(r io.Reader, buf []byte) (Kind, []byte, error) {
	var head [Header]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes is too long (max %d)", n, MaxFrame)
	}
	data := buf[:min(int(n), cap(buf))]
	if len(data) < int(n) {
		data = make([]byte, n)
	}
	if _, err := io.ReadFull(r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(head[0]), data, nil
}

// Printable removes control characters from a text that ends up on a terminal: in a title
// they would end it early, and a message of the sandbox could contain sequences.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || 0x7f <= r && r < 0xa0 {
			return -1
		}
		return r
	}, text)
}
