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

// world is all servers together.
type world struct {
	state  string
	sshd   string // folder of openssh-server's files; empty: none is run
	ca     *authority
	log    *eventLog
	stderr *log.Logger

	closers []io.Closer
	running sync.WaitGroup
	// failed takes the first error of a server that ended by itself.
	failed chan error
	// closing is closed before the servers are, so that their end is no failure.
	closing chan struct{}
}

// serve starts every server, says so by the file ready, which holds the process
// id, and ends them all when ctx does. It removes the file at its end.
func serve(ctx context.Context, state, ca, sshd string, stderr io.Writer) (err error) {
	if err := os.MkdirAll(state, 0o755); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	ready := filepath.Join(state, "ready")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the mark of an earlier run: %w", err)
	}
	w := &world{state: state, sshd: sshd, failed: make(chan error, 1), closing: make(chan struct{}),
		stderr: log.New(stderr, "world: ", 0)}
	if w.ca, err = loadAuthority(ca); err != nil {
		return err
	}
	if w.log, err = openLog(filepath.Join(state, "world.log"), w.fail); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.start(); err != nil {
		return err
	}
	if err := writeWhole(ready, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
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
		w.watchLinks, w.startDNS, w.startWeb, w.startGit, w.startMessages, w.startVictims, w.startSSH,
	} {
		if err := start(); err != nil {
			return err
		}
	}
	return nil
}

// close ends the servers and waits for them.
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

// run calls f in a goroutine; what is for its error. An error of f that is not
// due to the end of the world ends it.
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

// fail ends the world with the error, unless another was first.
func (w *world) fail(err error) {
	select {
	case w.failed <- err:
	default:
	}
}

// errNotHeld is for an IPv6 address in a namespace without IPv6.
var errNotHeld = errors.New("the address is not on any link")

// listen binds the address. It returns errNotHeld, having logged it, for an
// IPv6 address that the namespace does not have: IPv6 may be off altogether.
func (w *world) listen(at netip.AddrPort, proto string) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, w.bindError(at, err)
	}
	return loggedListener{Listener: l, log: w.log, proto: proto}, nil
}

// listenUDP is listen for datagrams.
func (w *world) listenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, w.bindError(at, err)
	}
	w.closers = append(w.closers, conn)
	return conn, nil
}

func (w *world) bindError(at netip.AddrPort, err error) error {
	missing := errors.Is(err, syscall.EADDRNOTAVAIL)
	if at.Addr().Is6() && (missing || errors.Is(err, syscall.EAFNOSUPPORT)) {
		w.log.add(event{Event: "notice", Local: at.String(), Text: errNotHeld.Error()})
		return errNotHeld
	}
	if missing {
		return fmt.Errorf("%w (put what `world addresses` prints on a link of this namespace)", err)
	}
	return err
}

// serveHTTP serves the handler at the address, with TLS if asked; proto names
// it in the log.
func (w *world) serveHTTP(at netip.AddrPort, secure bool, proto string, handler http.Handler) error {
	l, err := w.listen(at, proto)
	if errors.Is(err, errNotHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	if secure {
		// HTTP/1.1 only: the frames of HTTP/2 would hide from the tests what
		// goes over a connection and when.
		l = tls.NewListener(l, &tls.Config{
			GetCertificate: w.ca.forClient, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	}
	server := &http.Server{Handler: w.logRequests(proto, handler), ErrorLog: w.stderr,
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	w.closers = append(w.closers, server)
	w.run("serve "+at.String(), func() error { return server.Serve(l) })
	return nil
}

// logRequests logs each request as it arrives, before it is answered.
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
