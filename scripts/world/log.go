package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// event is a line of the world's log: traffic that arrived.
type event struct {
	Time time.Time `json:"time"`
	// Event is accept (a TCP connection), data (received on a connection to a
	// victim; logged when it ends), datagram, query (DNS), request (HTTP), packet
	// (seen on a link, see watchLinks), api (a request to apis.go) or notice.
	Event string `json:"event"`
	// Proto is dns, http, https, git, messages or victim; for a packet tcp, udp,
	// icmp and so on.
	Proto  string `json:"proto,omitempty"`
	Local  string `json:"local,omitempty"`
	Remote string `json:"remote,omitempty"`

	Method string `json:"method,omitempty"`
	Host   string `json:"host,omitempty"`
	Path   string `json:"path,omitempty"`
	SNI    string `json:"sni,omitempty"`

	Name string `json:"name,omitempty"`
	// Type of a DNS query, an ICMP message, or the credential of a request to an API.
	Type string `json:"type,omitempty"`
	// Transport of a DNS query: udp or tcp.
	Transport string   `json:"transport,omitempty"`
	Answer    []string `json:"answer,omitempty"`

	// Bytes is the number of received bytes, Data the first of them.
	Bytes int    `json:"bytes,omitempty"`
	Data  string `json:"data,omitempty"`
	Text  string `json:"text,omitempty"`
}

// maxData bounds Data, in bytes.
const maxData = 512

func (e event) withData(data []byte, total int) event {
	e.Bytes, e.Data = total, string(data[:min(len(data), maxData)])
	return e
}

// eventLog appends events to a file. Each line is a single write, so that a
// concurrent reader sees complete lines.
type eventLog struct {
	// fail is called when an event cannot be written.
	fail func(error)

	mu   sync.Mutex
	file *os.File
}

func openLog(path string, fail func(error)) (*eventLog, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return &eventLog{file: f, fail: fail}, nil
}

// add writes the event with the current time. A failure stops the world, because
// a missing event could hide a leak.
func (l *eventLog) add(e event) {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		l.fail(fmt.Errorf("encode an event: %w", err))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		l.fail(fmt.Errorf("write the log: %w", err))
	}
}

func (l *eventLog) close() error { return l.file.Close() }

// loggedListener logs each accepted connection.
type loggedListener struct {
	net.Listener
	log   *eventLog
	proto string
}

func (l loggedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.log.add(event{Event: "accept", Proto: l.proto,
			Local: conn.LocalAddr().String(), Remote: conn.RemoteAddr().String()})
	}
	return conn, err
}
