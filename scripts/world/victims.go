package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// victimPatience bounds how long a victim listens to one client.
const victimPatience = 30 * time.Second

// startVictims serves ports at which nothing may arrive unless a test says so.
func (w *world) startVictims() error {
	for _, addr := range victims {
		for _, port := range victimTCPPorts {
			if err := w.victimTCP(netip.AddrPortFrom(addr, port)); err != nil {
				return err
			}
		}
		for _, port := range victimUDPPorts {
			if err := w.victimUDP(netip.AddrPortFrom(addr, port)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) victimTCP(at netip.AddrPort) error {
	if isWeb(at) {
		return nil
	}
	l, err := w.listen(at, "victim")
	if errors.Is(err, errNotHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	w.closers = append(w.closers, l)
	w.run("serve "+at.String(), func() error { return w.accept(l, w.hear) })
	return nil
}

// accept hands each connection to handle, in a goroutine of its own, and closes
// it afterwards or when the world ends.
func (w *world) accept(l net.Listener, handle func(net.Conn)) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		done := make(chan struct{})
		w.running.Go(func() {
			defer close(done)
			handle(conn)
		})
		w.running.Go(func() {
			select {
			case <-done:
			case <-w.closing:
			}
			_ = conn.Close()
		})
	}
}

// hear greets, then logs what the client says.
func (w *world) hear(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(victimPatience))
	_, _ = io.WriteString(conn, banner(conn.LocalAddr()))
	first, _ := io.ReadAll(io.LimitReader(conn, maxData))
	rest, _ := io.Copy(io.Discard, conn)
	e := event{Event: "data", Proto: "victim", Local: conn.LocalAddr().String(), Remote: conn.RemoteAddr().String()}
	w.log.add(e.withData(first, len(first)+int(rest)))
}

func (w *world) victimUDP(at netip.AddrPort) error {
	conn, err := w.listenUDP(at)
	if errors.Is(err, errNotHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	w.run("serve udp "+at.String(), func() error {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return err
			}
			e := event{Event: "datagram", Proto: "victim", Local: at.String(), Remote: from.String()}
			w.log.add(e.withData(buf[:n], n))
			// The answer may have no way back; that it came is what counts.
			_, _ = conn.WriteToUDPAddrPort([]byte(banner(conn.LocalAddr())), from)
		}
	})
	return nil
}

func banner(local net.Addr) string { return fmt.Sprintf("victim %s\n", local) }
