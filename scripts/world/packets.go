package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// watchLinks logs the packets that arrive on the namespace's links, except
// loopback. A packet with an unreachable source address never becomes a
// connection, but it is a leak too. Only the first segment of a TCP connection is
// logged.
func (w *world) watchLinks() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL)))
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	w.closers = append(w.closers, f)
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the packet socket: %w", err)
	}
	w.run("watch the links", func() error {
		buf := make([]byte, 64<<10)
		for {
			var n int
			var from unix.Sockaddr
			var readErr error
			err := raw.Read(func(fd uintptr) bool {
				n, from, readErr = unix.Recvfrom(int(fd), buf, 0)
				return !errors.Is(readErr, unix.EAGAIN)
			})
			// ENETDOWN: a link went down.
			if errors.Is(readErr, unix.EINTR) || errors.Is(readErr, unix.ENETDOWN) {
				continue
			}
			if err := errors.Join(err, readErr); err != nil {
				return err
			}
			w.logPacket(from, buf[:n])
		}
	})
	return nil
}

// networkOrder is htons(3), the byte order of protocols in packet(7).
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (w *world) logPacket(from unix.Sockaddr, packet []byte) {
	link, ok := from.(*unix.SockaddrLinklayer)
	if !ok || link.Pkttype == unix.PACKET_OUTGOING || link.Hatype == unix.ARPHRD_LOOPBACK {
		return
	}
	var e event
	switch networkOrder(link.Protocol) {
	case unix.ETH_P_IP:
		e, ok = readIPv4(packet)
	case unix.ETH_P_IPV6:
		e, ok = readIPv6(packet)
	case unix.ETH_P_ARP:
		ok = false
	default:
		e = event{Proto: fmt.Sprintf("ethertype 0x%04x", networkOrder(link.Protocol))}
	}
	if ok {
		e.Event = "packet"
		e.Bytes = len(packet)
		w.log.add(e)
	}
}

// Numbers from IANA's protocol registry.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoICMPv6   = 58
)

func readIPv4(packet []byte) (event, bool) {
	h, err := ipv4.ParseHeader(packet)
	if err != nil || h.Len > len(packet) {
		return event{Proto: "ipv4", Text: "malformed"}, true
	}
	src, _ := netip.AddrFromSlice(h.Src.To4())
	dst, _ := netip.AddrFromSlice(h.Dst.To4())
	return readTransport(src, dst, h.Protocol, packet[h.Len:])
}

func readIPv6(packet []byte) (event, bool) {
	h, err := ipv6.ParseHeader(packet)
	if err != nil {
		return event{Proto: "ipv6", Text: "malformed"}, true
	}
	src, _ := netip.AddrFromSlice(h.Src)
	dst, _ := netip.AddrFromSlice(h.Dst)
	return readTransport(src, dst, h.NextHeader, packet[ipv6.HeaderLen:])
}

// readTransport returns false for packets that are not logged: neighbour
// discovery (RFC 4861), multicast listener reports (RFC 3810) and all TCP segments
// except the first.
func readTransport(src, dst netip.Addr, proto int, payload []byte) (event, bool) {
	e := event{Local: dst.String(), Remote: src.String()}
	switch {
	case proto == protoTCP && len(payload) >= 20:
		const syn, ack = 0x02, 0x10
		e.Proto = "tcp"
		e.ports(src, dst, payload)
		return e, payload[13]&(syn|ack) == syn
	case proto == protoUDP && len(payload) >= 8:
		e.Proto = "udp"
		e.ports(src, dst, payload)
		return e, true
	case proto == protoICMP:
		e.Proto, e.Type = "icmp", icmpType(dst, payload)
		return e, true
	case proto == protoICMPv6 && len(payload) > 0:
		e.Proto = "icmpv6"
		return e, payload[0] < 130 || payload[0] > 143
	case proto == protoHopByHop && dst.Is6():
		return e, !dst.IsMulticast()
	default:
		e.Proto = fmt.Sprintf("ip protocol %d", proto)
		return e, true
	}
}

// icmpUnreachable is the Type of an ICMP error about a packet that the world sent,
// such as a response to a client that no longer exists. It is not a leak, because
// it only quotes that packet.
const icmpUnreachable = "unreachable"

// icmpType returns a message's type number, or icmpUnreachable. A message of type
// 3 quotes the packet from its ninth byte on (RFC 792).
func icmpType(dst netip.Addr, payload []byte) string {
	const unreachable, quoted = 3, 8
	if len(payload) == 0 {
		return "none"
	}
	if payload[0] == unreachable && len(payload) > quoted {
		if h, err := ipv4.ParseHeader(payload[quoted:]); err == nil && h.Src.Equal(dst.AsSlice()) {
			return icmpUnreachable
		}
	}
	return strconv.Itoa(int(payload[0]))
}

func (e *event) ports(src, dst netip.Addr, payload []byte) {
	e.Remote = netip.AddrPortFrom(src, binary.BigEndian.Uint16(payload)).String()
	e.Local = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(payload[2:])).String()
}
