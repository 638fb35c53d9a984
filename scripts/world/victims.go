package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// clientTimeout bounds a connection to a victim and a DNS query over TCP.
const clientTimeout = 30 * time.Second

// startVictims listens on ports that no traffic may reach.
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

func (w *world) victimTCP(addr netip.AddrPort) error {
	if isWeb(addr) {
		return nil
	}
	l, err := w.listen(addr, "victim")
	if errors.Is(err, errNoAddress) {
		return nil
	}
	if err != nil {
		return err
	}
	w.closers = append(w.closers, l)
	w.run("serve "+addr.String(), func() error { return w.accept(l, w.record) })
	return nil
}

// accept calls handle for each connection, in a new goroutine, and closes the
// connection afterwards or when the world stops.
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

// record sends a banner, then logs what it receives.
func (w *world) record(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(clientTimeout))
	_, _ = io.WriteString(conn, banner(conn.LocalAddr()))
	first, _ := io.ReadAll(io.LimitReader(conn, maxData))
	rest, _ := io.Copy(io.Discard, conn)
	e := event{Event: "data", Proto: "victim", Local: conn.LocalAddr().String(), Remote: conn.RemoteAddr().String()}
	w.log.add(e.withData(first, len(first)+int(rest)))
}

func (w *world) victimUDP(addr netip.AddrPort) error {
	conn, err := w.listenUDP(addr)
	if errors.Is(err, errNoAddress) {
		return nil
	}
	if err != nil {
		return err
	}
	w.run("serve udp "+addr.String(), func() error {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return err
			}
			e := event{Event: "datagram", Proto: "victim", Local: addr.String(), Remote: from.String()}
			w.log.add(e.withData(buf[:n], n))
			// The reply may be undeliverable.
			_, _ = conn.WriteToUDPAddrPort([]byte(banner(conn.LocalAddr())), from)
		}
	})
	return nil
}

func banner(local net.Addr) string { return fmt.Sprintf("victim %s\n", local) }
