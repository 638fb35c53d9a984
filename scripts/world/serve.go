package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// world is the set of all servers.
type world struct {
	options
	authority *authority
	log       *eventLog
	stderr    *log.Logger

	closers []io.Closer
	running sync.WaitGroup
	// failed receives the first error of a server.
	failed chan error
	// closing is closed before the servers are stopped, so that their end does not
	// count as a failure.
	closing chan struct{}
}

// serve starts all servers, then creates the file ready with the process id. When
// ctx is done it stops the servers and removes the file.
func serve(ctx context.Context, o options, stderr io.Writer) (err error) {
	if err := os.MkdirAll(o.state, 0o755); err != nil {
		return fmt.Errorf("create the state directory: %w", err)
	}
	ready := filepath.Join(o.state, "ready")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the ready file of an earlier run: %w", err)
	}
	w := &world{options: o, failed: make(chan error, 1), closing: make(chan struct{}),
		stderr: log.New(stderr, "world: ", 0)}
	if w.authority, err = loadAuthority(o.ca); err != nil {
		return err
	}
	if w.log, err = openLog(filepath.Join(o.state, "world.log"), w.fail); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.start(); err != nil {
		return err
	}
	if err := writeFileAtomic(ready, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(ready)) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-w.failed:
		return err
	}
}

func (w *world) start() error {
	for _, start := range []func() error{
		w.watchLinks, w.startDNS, w.startWeb, w.startGit, w.startMessages, w.startAPIs, w.startVictims, w.startSSH,
	} {
		if err := start(); err != nil {
			return err
		}
	}
	return nil
}

// close stops the servers and waits for them.
func (w *world) close() error {
	close(w.closing)
	var errs []error
	for _, c := range w.closers {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	w.running.Wait()
	return errors.Join(append(errs, w.log.close())...)
}

// run calls f in a goroutine. If f returns before the world is closed, the world
// fails; its error begins with what.
func (w *world) run(what string, f func() error) {
	w.running.Go(func() {
		err := f()
		select {
		case <-w.closing:
			return
		default:
		}
		w.fail(fmt.Errorf("%s: %w", what, err))
	})
}

// fail stops the world with the error, unless it has already failed.
func (w *world) fail(err error) {
	select {
	case w.failed <- err:
	default:
	}
}

// errNoAddress is returned for an IPv6 address in a namespace without IPv6.
var errNoAddress = errors.New("address not assigned to a link")

// listen listens on the address. For an IPv6 address that is not available it
// logs and returns errNoAddress, because IPv6 may be disabled.
func (w *world) listen(addr netip.AddrPort, proto string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return nil, w.bindError(addr, err)
	}
	return loggedListener{Listener: l, log: w.log, proto: proto}, nil
}

// listenUDP is listen for datagrams.
func (w *world) listenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, w.bindError(addr, err)
	}
	w.closers = append(w.closers, conn)
	return conn, nil
}

func (w *world) bindError(addr netip.AddrPort, err error) error {
	missing := errors.Is(err, syscall.EADDRNOTAVAIL)
	if addr.Addr().Is6() && (missing || errors.Is(err, syscall.EAFNOSUPPORT)) {
		w.log.add(event{Event: "notice", Local: addr.String(), Text: errNoAddress.Error()})
		return errNoAddress
	}
	if missing {
		return fmt.Errorf("%w (assign the output of `world addresses` to a link of this namespace)", err)
	}
	return err
}

// serveHTTP serves the handler at the address, with TLS if secure is set. proto is
// its name in the log.
func (w *world) serveHTTP(addr netip.AddrPort, secure bool, proto string, handler http.Handler) error {
	l, err := w.listen(addr, proto)
	if errors.Is(err, errNoAddress) {
		return nil
	}
	if err != nil {
		return err
	}
	if secure {
		// HTTP/1.1 only, so that tests can see what is sent on a connection and when.
		l = tls.NewListener(l, &tls.Config{
			GetCertificate: w.authority.forClient, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	}
	server := &http.Server{Handler: w.logRequests(proto, handler), ErrorLog: w.stderr,
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	w.closers = append(w.closers, server)
	w.run("serve "+addr.String(), func() error { return server.Serve(l) })
	return nil
}

// logRequests logs each request before it is handled.
func (w *world) logRequests(proto string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		e := event{Event: "request", Proto: proto, Remote: r.RemoteAddr,
			Method: r.Method, Host: r.Host, Path: r.RequestURI}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			e.Local = local.String()
		}
		if r.TLS != nil {
			e.SNI = r.TLS.ServerName
		}
		w.log.add(e)
		next.ServeHTTP(rw, r)
	})
}
