package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// LogRecord is a line of a session's output, or a part of a long one.
type LogRecord struct {
	Time   time.Time
	Stderr bool
	Data   []byte
}

// maxOutput bounds the stored output, in bytes: PID 1 keeps less, but what is in a sandbox
// could answer in its place.
const maxOutput = 8 << 20

// Record stores the final state and the output of the held session, so that they survive
// the sandbox. It does nothing if the session has not ended.
func (m *Manager) Record(ctx context.Context, name string) error {
	var output bytes.Buffer
	state, err := m.readLogs(ctx, name, proto.Request{Op: proto.OpLogs}, func(data []byte) error {
		if output.Len()+len(data) > maxOutput {
			return fmt.Errorf("more than %d bytes of output", maxOutput)
		}
		output.Write(proto.Frame(proto.KindLog, data))
		return nil
	})
	if err != nil || state == nil || state.Running() || state.Started.IsZero() {
		return err // a running session is killed with the sandbox
	}
	// The state last: a reader takes it as the sign that both are complete.
	err = m.writeFile(name, outputFile, output.Bytes())
	if err == nil {
		err = m.writeState(name, m.ended(ctx, name, State{State: *state}))
	}
	if errors.Is(err, fs.ErrNotExist) { // the bottle was removed
		return nil
	}
	return err
}

// readLogs passes log records of PID 1 to fn, encoded as in frames, and returns the state
// that it sends at the end.
func (m *Manager) readLogs(ctx context.Context, name string, req proto.Request, fn func([]byte) error) (*proto.State, error) {
	var failed error
	c, err := m.dial(ctx, name, req, nil, Config{frames: func(kind proto.Kind, data []byte) error {
		if kind == proto.KindLog {
			failed = fn(data)
		}
		return failed
	}})
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, c.Detach)()
	_, err = c.Wait()
	switch {
	case failed != nil:
		return nil, failed
	case c.state != nil:
		return c.state, nil
	case c.failure != nil && c.failure.Code == 0:
		return nil, none(name)
	case err == nil:
		err = ctx.Err()
	}
	return nil, err
}

// Logs passes the output of the session to fn: what PID 1 keeps of it since a time and,
// with follow, what comes until the session ends. A record without data separates the two.
func (m *Manager) Logs(ctx context.Context, name string, since time.Time, follow bool, fn func(LogRecord) error) error {
	each := func(data []byte) error {
		r, err := parseLog(data)
		if err != nil || r.Time.Before(since) {
			return err
		}
		return fn(r)
	}
	if _, err := m.Recorded(name); err == nil {
		return m.recordedLogs(name, each)
	}
	_, err := m.readLogs(ctx, name, proto.Request{Op: proto.OpLogs, Since: since, Follow: follow}, each)
	if errors.Is(err, ErrNotRunning) {
		if _, serr := m.State(ctx, name); serr == nil { // stopped meanwhile, or killed
			return m.recordedLogs(name, each)
		}
	}
	return err
}

func (m *Manager) recordedLogs(name string, each func([]byte) error) error {
	data, err := os.ReadFile(m.file(name, outputFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the sandbox was killed, and the output is lost", name)
	}
	if err != nil {
		return fmt.Errorf("read output of %s: %w", name, err)
	}
	for r := bytes.NewReader(data); ; {
		_, frame, err := proto.Read(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = each(frame)
		}
		if err != nil {
			return err
		}
	}
}

func parseLog(data []byte) (LogRecord, error) {
	const head = 9
	if len(data) < head {
		return LogRecord{}, errors.New("log record is too short")
	}
	at := time.Unix(0, int64(binary.BigEndian.Uint64(data)))
	return LogRecord{Time: at, Stderr: proto.Kind(data[8]) == proto.KindStderr, Data: data[head:]}, nil
}
