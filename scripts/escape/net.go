package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// payload is what attempts send.
const payload = "escaped"

// tryTCP connects and sends the payload. The argument is the address.
func tryTCP(ctx context.Context, _ string, args []string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, payload)
	return "connected", err
}

// tryUDP sends the payload twice. It succeeds only if there is a reply, because
// the prober does not see whether a datagram arrives. The argument is the address.
func tryUDP(ctx context.Context, _ string, args []string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", args[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return "reply received", request(conn, []byte(payload))
}

// request sends the data twice and waits for a reply.
func request(conn net.Conn, data []byte) error {
	_ = conn.SetDeadline(time.Now().Add(timeout / 3))
	for range 2 {
		if _, err := conn.Write(data); err != nil {
			return err
		}
	}
	_, err := conn.Read(make([]byte, 512))
	return err
}

// tryICMP pings the address over a raw socket or, without privileges, over the
// kernel's ping socket.
func tryICMP(_ context.Context, _ string, args []string) (string, error) {
	to := netip.MustParseAddr(args[0])
	raw, ping, typ := "ip4:icmp", "udp4", icmp.Type(ipv4.ICMPTypeEcho)
	if to.Is6() {
		raw, ping, typ = "ip6:ipv6-icmp", "udp6", ipv6.ICMPTypeEchoRequest
	}
	var dst net.Addr = &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}
	conn, err := icmp.ListenPacket(raw, "")
	if err != nil {
		var perr error
		if conn, perr = icmp.ListenPacket(ping, ""); perr != nil {
			return "", errors.Join(err, perr)
		}
		dst = &net.UDPAddr{IP: to.AsSlice(), Zone: to.Zone()}
	}
	defer func() { _ = conn.Close() }()
	data, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Data: []byte(payload)}}).Marshal(nil)
	if err != nil {
		return "", err
	}
	if _, err := conn.WriteTo(data, dst); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(time.Now().Add(timeout / 3))
	// A raw socket receives all ICMP messages, such as errors and other replies.
	for buf := make([]byte, 512); ; {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return "", err
		}
		m, err := icmp.ParseMessage(typ.Protocol(), buf[:n])
		if err == nil && (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) {
			return "reply received", nil
		}
	}
}

// trySpoof sends a datagram with a forged source address. The arguments are the
// source address and the destination with port.
func trySpoof(_ context.Context, _ string, args []string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return "", fmt.Errorf("raw socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	src, dst := netip.MustParseAddr(args[0]), netip.MustParseAddrPort(args[1])
	packet := datagram(src, dst)
	return "sent", unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
}

// datagram returns a UDP datagram with an IPv4 header (RFC 768, RFC 791). A UDP
// checksum of zero means that there is none.
func datagram(src netip.Addr, dst netip.AddrPort) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, 40000)
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	h := &ipv4.Header{
		Version: 4, Len: 20, TotalLen: 20 + len(udp), TTL: 64, Protocol: unix.IPPROTO_UDP,
		Src: src.AsSlice(), Dst: dst.Addr().AsSlice(),
	}
	head, err := h.Marshal()
	if err != nil {
		panic(err) // only the addresses vary
	}
	sum := uint32(0)
	for i := 0; i < len(head); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(head[i:]))
	}
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum+sum>>16))
	return append(head, udp...)
}

// tryFrame sends a datagram in a broadcast frame on a link. The arguments are the
// link, the source address and the destination with port.
func tryFrame(_ context.Context, _ string, args []string) (string, error) {
	const ip = 0x0008 // ETH_P_IP in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, ip)
	if err != nil {
		return "", fmt.Errorf("packet socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	l, err := net.InterfaceByName(args[0])
	if err != nil {
		return "", err
	}
	to := &unix.SockaddrLinklayer{Protocol: ip, Ifindex: l.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	return "sent", unix.Sendto(fd, datagram(netip.MustParseAddr(args[1]), netip.MustParseAddrPort(args[2])), 0, to)
}

// tryUnix connects to a unix socket and sends the payload.
func tryUnix(ctx context.Context, _ string, args []string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", args[0])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, payload)
	return "connected", err
}

// tryRoute adds a route through a gateway and sends a datagram. The arguments are
// the destination prefix, the gateway and the address of the victim.
func tryRoute(ctx context.Context, proxy string, args []string) (string, error) {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	dst, err := netlink.ParseIPNet(args[0])
	if err != nil {
		return "", err
	}
	gw := net.ParseIP(args[1])
	err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: gw, Flags: int(netlink.FLAG_ONLINK)})
	detail, terr := tryUDP(ctx, proxy, args[2:])
	return detail, errors.Join(err, terr)
}

// tryAddress adds an address to the link and sends a datagram. The arguments are
// the address and the address of the victim.
func tryAddress(ctx context.Context, proxy string, args []string) (string, error) {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return "", err
	}
	addr, err := netlink.ParseAddr(args[0])
	if err != nil {
		return "", err
	}
	err = netlink.AddrAdd(l, addr)
	detail, terr := tryUDP(ctx, proxy, args[1:])
	return detail, errors.Join(err, terr)
}

// tryLookup queries a name server. The arguments are udp or tcp, the server and
// the name.
func tryLookup(ctx context.Context, _ string, args []string) (string, error) {
	name, err := dnsmessage.NewName(args[2])
	if err != nil {
		return "", err
	}
	query, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}).Pack()
	if err != nil {
		return "", err
	}
	conn, err := new(net.Dialer).DialContext(ctx, args[0], args[1])
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if args[0] == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	return "reply received", request(conn, query)
}
