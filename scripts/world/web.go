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
		handler := webHandler(s.name)
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

// webHandler answers for the site of that name, whatever the request's Host
// says, so that a client sees which address it has reached:
//
//	/                  hello from NAME
//	/bytes?n=N         N bytes
//	/echo              the request's body
//	/redirect?to=URL   302 to URL
//	/headers           the request's Host and headers, JSON
//	/slow?ms=M&n=N     N lines, one each M milliseconds
func webHandler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(rw, "hello from %s\n", name) })
	mux.HandleFunc("/bytes", answerBytes)
	mux.HandleFunc("/echo", answerEcho)
	mux.HandleFunc("/redirect", answerRedirect)
	mux.HandleFunc("/headers", answerHeaders)
	mux.HandleFunc("/slow", answerSlow)
	return mux
}

// Errors in writing an answer are the client's going away: nothing to do.

func answerBytes(rw http.ResponseWriter, r *http.Request) {
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

func answerEcho(rw http.ResponseWriter, r *http.Request) {
	// Without this, Go's server stops reading the body at the first write.
	_ = http.NewResponseController(rw).EnableFullDuplex()
	rw.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.Copy(rw, r.Body)
}

func answerRedirect(rw http.ResponseWriter, r *http.Request) {
	to := r.FormValue("to")
	if to == "" {
		http.Error(rw, "to is missing", http.StatusBadRequest)
		return
	}
	rw.Header().Set("Location", to)
	rw.WriteHeader(http.StatusFound)
}

func answerHeaders(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "uri": r.RequestURI, "headers": r.Header})
}

func answerSlow(rw http.ResponseWriter, r *http.Request) {
	pause, ok := number(rw, r, "ms", 60_000)
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
		case <-time.After(time.Duration(pause) * time.Millisecond):
		case <-r.Context().Done():
			return
		}
		if _, err := fmt.Fprintf(rw, "line %d\n", i+1); err != nil || control.Flush() != nil {
			return
		}
	}
}

// number reads a query parameter between 0 and limit, or answers 400.
func number(rw http.ResponseWriter, r *http.Request, name string, limit int64) (int64, bool) {
	n, err := strconv.ParseInt(r.FormValue(name), 10, 64)
	if err != nil || n < 0 || n > limit {
		http.Error(rw, fmt.Sprintf("%s is not a number from 0 to %d", name, limit), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}
