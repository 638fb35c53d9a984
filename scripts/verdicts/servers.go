package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/websocket"
)

// mark is sent by every upstream server that is reached.
const mark = "REACHED"

// Ports of the upstream servers, except for the well-known ones.
const (
	portTLS     = 9443 // the web server over TLS
	portTLSHalf = 9444 // portHalf over TLS
	portHalf    = 2022 // answers after the client has half-closed
	portEnds    = 2023 // sends, half-closes and keeps what it receives
	portWeb     = 2080 // the web server, on the port of an ssh entry
)

// serve starts the upstream servers: HTTP on 80, servers that send first on the
// ssh ports, and elsewhere servers that answer any first bytes.
func (s setup) serve(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	secure := httptest.NewUnstartedServer(handler())
	_ = secure.Listener.Close() // replaced below
	for port, handle := range map[int]func(net.Conn){
		22: banner, 2222: banner, 443: answer, 8443: answer, portHalf: half, portEnds: ends, 80: nil, portWeb: nil, portTLS: nil, portTLSHalf: nil,
	} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("%s:%d", s.upstream, port))
		if err != nil {
			stop()
			return nil, fmt.Errorf("start upstream server (requires root): %w", err)
		}
		switch port {
		case portTLS:
			secure.Listener = l
			secure.StartTLS()
			stops = append(stops, secure.Close)
			continue
		case portTLSHalf:
			// Clients do not verify it, so httptest's certificate will do.
			l = tls.NewListener(l, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return &secure.TLS.Certificates[0], nil
			}})
			go accept(l, half)
		case 80, portWeb:
			web := &http.Server{ReadHeaderTimeout: timeout, Handler: handler()}
			go func() { _ = web.Serve(l) }()
			stops = append(stops, func() { _ = web.Close() })
		default:
			go accept(l, handle)
		}
		stops = append(stops, func() { _ = l.Close() })
	}
	return stop, nil
}

// handler is the web server:
//
//	/                     the mark, after the body was received
//	/redirect?to=U&code=N a redirect to U with status N
//	/plain                the mark, unless the request contains an Upgrade header
//	/echo                 the request body
//	/count                the length of the request body
//	/bytes?n=N            N bytes
//	/slow                 the mark, one letter at a time
//	/ws, /push            websockets: an echo server, and one that sends first
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, mark)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code")) // WriteHeader panics on an invalid one
		w.Header().Set("Location", r.FormValue("to"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(w, mark)
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, " ", err)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		_, _ = io.CopyN(w, noise(), n)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		for _, letter := range mark {
			_, _ = io.WriteString(w, string(letter))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(pauseTime)
		}
	})
	// A websocket.Server does not check the Origin header.
	mux.Handle("/ws", websocket.Server{Handler: func(c *websocket.Conn) { _, _ = io.Copy(c, c) }})
	mux.Handle("/push", websocket.Server{Handler: func(c *websocket.Conn) {
		for range pushes {
			_ = websocket.Message.Send(c, mark)
			time.Sleep(pauseTime)
		}
	}})
	return mux
}

// pauseTime is the pause of slow peers, pushes the number of messages of /push.
const (
	pauseTime = 20 * time.Millisecond
	pushes    = 3
)

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
			_ = c.SetDeadline(time.Now().Add(timeout))
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

func half(c net.Conn) {
	n, err := io.Copy(io.Discard, c)
	_, _ = fmt.Fprint(c, n, " ", err)
}

// heard receives what ends reads after it has half-closed.
var heard = make(chan string, 16)

func ends(c net.Conn) {
	_, _ = io.WriteString(c, mark)
	_ = c.(*net.TCPConn).CloseWrite()
	text, err := io.ReadAll(c)
	heard <- fmt.Sprint(string(text), " ", err)
}
