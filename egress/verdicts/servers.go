package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// mark is what a server says that was reached.
const mark = "REACHED"

// serve starts the servers: on 80 HTTP, on the ports of ssh one that speaks
// first, elsewhere one that answers the first bytes, whatever they are.
func (s scene) serve(ctx context.Context) (stop func(), err error) {
	var listeners []net.Listener
	stop = func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	for port, handle := range map[int]func(net.Conn){22: banner, 2222: banner, 443: answer, 8443: answer, 80: nil} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("%s:%d", s.upstream, port))
		if err != nil {
			stop()
			return nil, fmt.Errorf("start the servers (as root): %w", err)
		}
		listeners = append(listeners, l)
		if handle == nil {
			go func() { _ = web().Serve(l) }()
		} else {
			go accept(l, handle)
		}
	}
	return stop, nil
}

func web() *http.Server {
	return &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "http://other.verdict.test/", http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, mark)
	})}
}

func accept(l net.Listener, handle func(net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(patience))
			handle(c)
		})
	}
}

func banner(c net.Conn) {
	_, _ = io.WriteString(c, "SSH-2.0-"+mark+"\r\n")
	_, _ = io.Copy(io.Discard, c)
}

func answer(c net.Conn) {
	if n, _ := c.Read(make([]byte, 4096)); n > 0 {
		_, _ = io.WriteString(c, mark)
	}
	_, _ = io.Copy(io.Discard, c)
}
