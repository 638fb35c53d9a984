package hostrule

import (
	"errors"
	"fmt"
	"io"
)

// maxPacket is the longest packet, with its length (gitprotocol-common(5), "pkt-line
// Format").
const maxPacket = 65520

// readPacket reads a pkt-line. It returns false for a flush packet. The special packets of
// protocol version 2, which have a length of 1 to 3, and an empty packet have no place in a
// push and are errors. It reads no byte after the packet.
func readPacket(r io.Reader) (data []byte, ok bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, noEOF(err)
	}
	n := 0
	for _, c := range head {
		digit, ok := hexDigit(c)
		if !ok {
			return nil, false, errors.New("invalid length of a packet")
		}
		n = n<<4 | digit
	}
	switch {
	case n == 0:
		return nil, false, nil
	case n <= len(head) || n > maxPacket:
		return nil, false, fmt.Errorf("invalid length of a packet: %d", n)
	}
	data = make([]byte, n-len(head))
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, false, noEOF(err)
	}
	return data, true, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func hexDigit(c byte) (int, bool) {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0'), true
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10, true
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10, true
	}
	return 0, false
}

// packet formats a pkt-line.
func packet(data string) string { return fmt.Sprintf("%04x%s", len(data)+4, data) }

// flush is a flush packet.
const flush = "0000"
