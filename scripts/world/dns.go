package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const dnsPort = 53

// resolver answers queries from the zone. It is safe for concurrent use.
type resolver struct {
	log *eventLog
	// flips counts the queries for flipName's IPv4 address.
	flips atomic.Uint64
}

func (w *world) startDNS() error {
	addr := netip.AddrPortFrom(addrDNS, dnsPort)
	r := &resolver{log: w.log}
	conn, err := w.listenUDP(addr)
	if err != nil {
		return err
	}
	w.run("serve dns over udp", func() error { return r.serveUDP(conn) })
	l, err := w.listen(addr, "dns")
	if err != nil {
		return err
	}
	w.closers = append(w.closers, l)
	w.run("serve dns over tcp", func() error { return w.accept(l, r.serveTCP) })
	return nil
}

func (r *resolver) serveUDP(conn *net.UDPConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		e := event{Event: "query", Proto: "dns", Transport: "udp", Local: conn.LocalAddr().String(), Remote: from.String()}
		if answer := r.answer(buf[:n], e); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from) // on error the client retries
		}
	}
}

// serveTCP answers queries until the client closes the connection. Each message
// is preceded by its length in two bytes (RFC 1035, 4.2.2).
func (r *resolver) serveTCP(conn net.Conn) {
	for {
		_ = conn.SetDeadline(time.Now().Add(clientTimeout))
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		e := event{Event: "query", Proto: "dns", Transport: "tcp", Local: conn.LocalAddr().String(), Remote: conn.RemoteAddr().String()}
		answer := r.answer(query, e)
		if answer == nil {
			return
		}
		out := binary.BigEndian.AppendUint16(nil, uint16(len(answer)))
		if _, err := conn.Write(append(out, answer...)); err != nil {
			return
		}
	}
}

// answer logs the query e, even a malformed one, and returns the response, or nil
// if the message has no question.
func (r *resolver) answer(query []byte, e event) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		r.log.add(e.withData(query, len(query)))
		return nil
	}
	question, err := p.Question()
	if err != nil {
		r.log.add(e.withData(query, len(query)))
		return nil
	}
	addrs, found := r.lookup(question)
	e.Name = question.Name.String()
	e.Type = strings.TrimPrefix(question.Type.String(), "Type")
	e.Bytes = len(query)
	for _, a := range addrs {
		e.Answer = append(e.Answer, a.String())
	}
	r.log.add(e)
	out, err := response(header, question, addrs, found)
	if err != nil {
		r.log.add(event{Event: "notice", Proto: "dns", Text: fmt.Sprintf("response for %s: %v", e.Name, err)})
		return nil
	}
	return out
}

// lookup returns the name's addresses of the requested family and whether the
// name exists.
func (r *resolver) lookup(q dnsmessage.Question) (addrs []netip.Addr, found bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	all, found := zone[name]
	if name == flipName {
		found = true
		if q.Type == dnsmessage.TypeA {
			all = []netip.Addr{addrFlip}
			if r.flips.Add(1)%2 == 0 {
				all = []netip.Addr{addrPrivate}
			}
		}
	}
	for _, a := range all {
		if a.Is4() && q.Type == dnsmessage.TypeA || a.Is6() && q.Type == dnsmessage.TypeAAAA {
			addrs = append(addrs, a)
		}
	}
	return addrs, found
}

func response(header dnsmessage.Header, q dnsmessage.Question, addrs []netip.Addr, found bool) ([]byte, error) {
	reply := dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	if !found {
		reply.RCode = dnsmessage.RCodeNameError
	}
	m := dnsmessage.Message{Header: reply, Questions: []dnsmessage.Question{q}}
	for _, a := range addrs {
		// A TTL of zero: nothing between a test and this server may cache.
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET},
			Body:   addressRecord(a),
		})
	}
	return m.Pack()
}

func addressRecord(a netip.Addr) dnsmessage.ResourceBody {
	if a.Is4() {
		return &dnsmessage.AResource{A: a.As4()}
	}
	return &dnsmessage.AAAAResource{AAAA: a.As16()}
}
