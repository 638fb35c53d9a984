// Command helper is the program of the test cluster's own pods (scripts/kube): the pause
// container of every pod, the cluster's DNS service, what an agent must not reach, and the
// agent's attempts to reach it. Under the name ipv6 it is a network plugin.
//
// usage: helper pause | dns UPSTREAM | serve ADDRESS... | probe [NETWORK/]ADDRESS...
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case filepath.Base(os.Args[0]) == "ipv6":
		return plugin6()
	case len(args) == 0 || args[0] == "pause":
		pause()
		return nil
	case args[0] == "dns" && len(args) == 2:
		return dns(args[1])
	case args[0] == "serve" && len(args) > 1:
		return serve(args[1:])
	case args[0] == "probe":
		return probe(args[1:])
	}
	return errors.New("unknown arguments")
}

// pause waits for a signal to end, and reaps the pod's orphans.
func pause() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}

// answerTimeout bounds one question.
const answerTimeout = 5 * time.Second

// dns passes questions to another server. Each datagram is answered from the address that
// was asked, because the server listens on its pod's only one.
func dns(upstream string) error {
	packets, err := net.ListenPacket("udp4", ":53")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", ":53")
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- answerStreams(l, upstream) }()
	go func() { failed <- answerPackets(packets, upstream) }()
	return <-failed
}

func answerPackets(packets net.PacketConn, upstream string) error {
	for {
		question := make([]byte, 64<<10)
		n, from, err := packets.ReadFrom(question)
		if err != nil {
			return err
		}
		go func() {
			up, err := net.DialTimeout("udp4", upstream, answerTimeout)
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			_ = up.SetDeadline(time.Now().Add(answerTimeout))
			if _, err := up.Write(question[:n]); err != nil {
				return
			}
			answer := make([]byte, 64<<10)
			if n, err := up.Read(answer); err == nil {
				_, _ = packets.WriteTo(answer[:n], from) // the client asks again
			}
		}()
	}
}

func answerStreams(l net.Listener, upstream string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			up, err := net.DialTimeout("tcp4", upstream, answerTimeout)
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			_ = up.SetDeadline(time.Now().Add(answerTimeout))
			go func() { _, _ = io.Copy(up, c) }()
			_, _ = io.Copy(c, up)
		}()
	}
}

// serve answers HTTP requests on all addresses.
func serve(addrs []string) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "victim\n") })
	failed := make(chan error, len(addrs))
	for _, addr := range addrs {
		s := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: time.Minute}
		go func() { failed <- s.ListenAndServe() }()
	}
	return <-failed
}
