package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

func (w *world) startWeb() error {
	for _, s := range webSites {
		handler := withAuth(webHandler(s.name))
		if err := w.serveHTTP(netip.AddrPortFrom(s.addr, 80), false, "http", handler); err != nil {
			return err
		}
		if !s.tls {
			continue
		}
		if err := w.serveHTTP(netip.AddrPortFrom(s.addr, 443), true, "https", handler); err != nil {
			return err
		}
	}
	return nil
}

// webHandler serves the site with the given name. It ignores the request's Host,
// so that a client sees which address it reached:
//
//	/                  hello from NAME
//	/bytes?n=N         N bytes
//	/echo              the request's body
//	/redirect?to=URL   302 to URL
//	/headers           the request's Host and headers as JSON
//	/slow?ms=M&n=N     N lines, one every M milliseconds
func webHandler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(rw, "hello from %s\n", name) })
	mux.HandleFunc("/bytes", serveBytes)
	mux.HandleFunc("/echo", serveEcho)
	mux.HandleFunc("/redirect", serveRedirect)
	mux.HandleFunc("/headers", serveHeaders)
	mux.HandleFunc("/slow", serveSlow)
	return mux
}

// The handlers ignore write errors: the client has disconnected.

func serveBytes(rw http.ResponseWriter, r *http.Request) {
	n, ok := number(rw, r, "n", 1<<34)
	if !ok {
		return
	}
	rw.Header().Set("Content-Type", "application/octet-stream")
	rw.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = byte('a' + i%26)
	}
	for n > 0 {
		wrote, err := rw.Write(chunk[:min(n, int64(len(chunk)))])
		if err != nil {
			return
		}
		n -= int64(wrote)
	}
}

func serveEcho(rw http.ResponseWriter, r *http.Request) {
	// Otherwise Go's server stops reading the body at the first write.
	_ = http.NewResponseController(rw).EnableFullDuplex()
	rw.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.Copy(rw, r.Body)
}

func serveRedirect(rw http.ResponseWriter, r *http.Request) {
	to := r.FormValue("to")
	if to == "" {
		http.Error(rw, "missing parameter to", http.StatusBadRequest)
		return
	}
	rw.Header().Set("Location", to)
	rw.WriteHeader(http.StatusFound)
}

func serveHeaders(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "uri": r.RequestURI, "headers": r.Header})
}

func serveSlow(rw http.ResponseWriter, r *http.Request) {
	interval, ok := number(rw, r, "ms", 60_000)
	if !ok {
		return
	}
	n, ok := number(rw, r, "n", 10_000)
	if !ok {
		return
	}
	control := http.NewResponseController(rw)
	for i := range n {
		select {
		case <-time.After(time.Duration(interval) * time.Millisecond):
		case <-r.Context().Done():
			return
		}
		if _, err := fmt.Fprintf(rw, "line %d\n", i+1); err != nil || control.Flush() != nil {
			return
		}
	}
}

// number parses a query parameter between 0 and limit, or responds with 400.
func number(rw http.ResponseWriter, r *http.Request, name string, limit int64) (int64, bool) {
	n, err := strconv.ParseInt(r.FormValue(name), 10, 64)
	if err != nil || n < 0 || n > limit {
		http.Error(rw, fmt.Sprintf("invalid parameter %s: not a number from 0 to %d", name, limit), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}
