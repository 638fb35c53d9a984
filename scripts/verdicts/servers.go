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

// mark is what a server says that was reached.
const mark = "REACHED"

// Ports of servers beside those that everybody knows.
const (
	portTLS     = 9443 // the web server over TLS
	portTLSHalf = 9444 // portHalf's over TLS
	portHalf    = 2022 // answers when the client has ended its direction
	portEnds    = 2023 // speaks, ends its own direction, and keeps what it gets
	portWeb     = 2080 // the web server, on a port of an ssh entry
)

// serve starts the servers: on 80 HTTP, on the ports of ssh one that speaks
// first, elsewhere one that answers the first bytes, whatever they are.
func (s scene) serve(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	secure := httptest.NewUnstartedServer(handler())
	_ = secure.Listener.Close() // it gets another
	for port, handle := range map[int]func(net.Conn){
		22: banner, 2222: banner, 443: answer, 8443: answer, portHalf: half, portEnds: ends, 80: nil, portWeb: nil, portTLS: nil, portTLSHalf: nil,
	} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("%s:%d", s.upstream, port))
		if err != nil {
			stop()
			return nil, fmt.Errorf("start the servers (as root): %w", err)
		}
		switch port {
		case portTLS:
			secure.Listener = l
			secure.StartTLS()
			stops = append(stops, secure.Close)
			continue
		case portTLSHalf:
			// Of httptest's certificate nobody asks more than to be one.
			l = tls.NewListener(l, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return &secure.TLS.Certificates[0], nil
			}})
			go accept(l, half)
		case 80, portWeb:
			web := &http.Server{ReadHeaderTimeout: patience, Handler: handler()}
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
//	/                     the mark, when the body has come
//	/redirect?to=U&code=N N to U
//	/plain                the mark, unless the request still asks for an upgrade
//	/echo                 the body
//	/count                how many bytes the body has
//	/bytes?n=N            N bytes
//	/slow                 the mark, a letter at a time
//	/ws, /push            websockets: one that says what it hears, one that speaks first
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, mark)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code")) // a wrong one panics
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
	// A server that does not look where a client says that it comes from.
	mux.Handle("/ws", websocket.Server{Handler: func(c *websocket.Conn) { _, _ = io.Copy(c, c) }})
	mux.Handle("/push", websocket.Server{Handler: func(c *websocket.Conn) {
		for range pushes {
			_ = websocket.Message.Send(c, mark)
			time.Sleep(pauseTime)
		}
	}})
	return mux
}

// pauseTime is what makes something slow, pushes how often /push speaks.
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

func half(c net.Conn) {
	n, err := io.Copy(io.Discard, c)
	_, _ = fmt.Fprint(c, n, " ", err)
}

// heard is what ends was told after it had ended its own direction.
var heard = make(chan string, 16)

func ends(c net.Conn) {
	_, _ = io.WriteString(c, mark)
	_ = c.(*net.TCPConn).CloseWrite()
	text, err := io.ReadAll(c)
	heard <- fmt.Sprint(string(text), " ", err)
}
