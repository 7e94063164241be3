// frame.go is the codec of the framed protocol (contract section 4, docs/protocol.md):
// how frames lie on the wire, their limits, and a reader that looks ahead. Server,
// client and runner share it; it knows no request, no reply code and no socket.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

const (
	frameVersion = 1       // of FRAM
	frameHeader  = 5       // bytes: length, big endian, and type
	maxFrame     = 262_144 // bytes of payload: contract section 4
)

// A frameType is the type byte of a frame.
type frameType byte

const (
	frameRequest frameType = 'R' // to the server
	frameAnswer  frameType = 'A' // to the client
	frameData    frameType = 'D' // file bytes, a command's stdin and stdout
	frameStderr  frameType = 'E' // to the client
	frameEnd     frameType = 'F' // the end of data
	frameCancel  frameType = 'X' // to the server
	frameSignal  frameType = 'S' // to the server
	frameWindow  frameType = 'W' // to the server
	frameMessage frameType = 'M' // to the client
	framePing    frameType = 'P'
)

// toServer and toClient are the types that each side may send.
const (
	toServer = "RDFXSWP"
	toClient = "ADEFMP"
)

// String is the type as messages show it, whatever byte it is.
func (t frameType) String() string {
	if t > ' ' && t < 0x7f {
		return string(rune(t))
	}
	return fmt.Sprintf("0x%02x", byte(t))
}

var errFrameLong = errors.New("a frame is longer than the protocol allows")

// appendHeader begins a frame with n bytes of payload.
func appendHeader(b []byte, t frameType, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, byte(t))
}

// appendFrame is a whole frame.
func appendFrame(b []byte, t frameType, payload []byte) []byte {
	return append(appendHeader(b, t, len(payload)), payload...)
}

// parseHeader takes the first frameHeader bytes of b apart. n is the payload's
// length as it was sent, also with errFrameLong.
func parseHeader(b []byte) (t frameType, n int, err error) {
	length := binary.BigEndian.Uint32(b)
	t = frameType(b[4])
	if length > maxFrame {
		return t, int(min(length, 1<<31-1)), errFrameLong
	}
	return t, int(length), nil
}

// frameBuffer is what a busy connection reads at once: a dozen small files, and
// little beside the file buffers of a large one.
const frameBuffer = 32 << 10

var frameBuffers = sync.Pool{New: func() any { b := make([]byte, frameBuffer); return &b }}

// A frameReader makes frames of what arrives. Whoever owns the connection reads
// into space and says got; frames are then taken from the front, and may be
// looked at behind it before their turn.
type frameReader struct {
	first  [1024]byte // all that an idle connection needs
	pooled *[]byte    // the larger one, while there is use for it
	buf    []byte     // one of both, or a still larger one for a single frame
	r, w   int        // buf[r:w] has been read and not used
	full   bool       // the last read left no room: there may be more

	kind frameType // of the frame that next has opened
	left int       // bytes of its payload that nobody has taken
	wait int       // bytes behind r that a look ahead has passed over: whole frames
}

func newFrameReader(already []byte) *frameReader {
	f := &frameReader{}
	f.buf = f.first[:]
	if len(already) > len(f.buf) {
		f.buf = make([]byte, len(already))
	}
	f.w = copy(f.buf, already)
	return f
}

// space is where the next read puts its bytes; it is never empty unless a look
// ahead has filled all there is to fill.
func (f *frameReader) space() []byte {
	if f.r == f.w {
		f.r, f.w = 0, 0
		if f.full && f.pooled == nil {
			f.pooled = frameBuffers.Get().(*[]byte)
			f.buf = *f.pooled
		}
	}
	if f.w == len(f.buf) {
		if f.r > 0 {
			f.w = copy(f.buf, f.buf[f.r:f.w])
			f.r = 0
		} else {
			f.grow(2 * len(f.buf))
		}
	}
	return f.buf[f.w:]
}

// got says that n bytes were read into space.
func (f *frameReader) got(n int) {
	f.w += n
	f.full = f.w == len(f.buf)
}

// grow makes room for size bytes from r on.
func (f *frameReader) grow(size int) {
	if size <= len(f.buf) {
		f.w = copy(f.buf, f.buf[f.r:f.w])
		f.r = 0
		return
	}
	old := f.buf[f.r:f.w]
	was := f.pooled
	f.pooled = nil
	if size <= frameBuffer {
		f.pooled = frameBuffers.Get().(*[]byte)
		f.buf = *f.pooled
	} else {
		f.buf = make([]byte, size)
	}
	f.w = copy(f.buf, old)
	f.r = 0
	if was != nil {
		frameBuffers.Put(was)
	}
}

// shrink gives a large buffer back when nothing is in it.
func (f *frameReader) shrink() {
	if f.r != f.w {
		return
	}
	if f.pooled != nil {
		frameBuffers.Put(f.pooled)
		f.pooled = nil
	}
	f.buf, f.r, f.w, f.full = f.first[:], 0, 0, false
}

// buffered tells whether anything has been read that is not used.
func (f *frameReader) buffered() bool { return f.r < f.w || f.left > 0 }

// next opens the next frame: kind and left are its own from then on. false:
// its header has not arrived. The frame before must have been used up.
func (f *frameReader) next() (bool, error) {
	if f.w-f.r < frameHeader {
		return false, nil
	}
	kind, n, err := parseHeader(f.buf[f.r:])
	f.kind, f.left = kind, n
	if err != nil {
		return true, err
	}
	f.r += frameHeader
	return true, nil
}

// take is what has arrived of the open frame's payload, most bytes at most. It is
// valid until the next read.
func (f *frameReader) take(most int) []byte {
	n := min(f.left, f.w-f.r, most)
	p := f.buf[f.r : f.r+n]
	f.r += n
	f.left -= n
	return p
}

// passed says that n bytes of the open frame's payload went another way.
func (f *frameReader) passed(n int) { f.left -= n }

// whole is the open frame's payload once all of it has arrived; it is valid
// until the next read.
func (f *frameReader) whole() ([]byte, bool) {
	if f.w-f.r >= f.left {
		return f.take(f.left), true
	}
	if f.left > len(f.buf)-f.r {
		f.grow(f.left)
	}
	return nil, false
}

// ahead is the frame behind those that wait, if all of it has arrived. most
// bounds what may wait, with it; room is false for a frame beyond that.
func (f *frameReader) ahead(most int) (kind frameType, payload []byte, ok, room bool, err error) {
	b := f.buf[f.r+f.wait : f.w]
	if len(b) < frameHeader {
		return 0, nil, false, f.wait+frameHeader <= most, nil
	}
	kind, n, err := parseHeader(b)
	if err != nil {
		return kind, nil, true, true, err
	}
	size := f.wait + frameHeader + n
	if size > most {
		return kind, nil, false, false, nil
	}
	if len(b) < frameHeader+n {
		if size > len(f.buf)-f.r {
			f.grow(size)
		}
		return kind, nil, false, true, nil
	}
	return kind, b[frameHeader : frameHeader+n], true, true, nil
}

// keep leaves the frame that ahead has shown where it is, for its turn.
func (f *frameReader) keep(payload []byte) { f.wait += frameHeader + len(payload) }

// drop takes it out.
func (f *frameReader) drop(payload []byte) {
	at := f.r + f.wait
	f.w = at + copy(f.buf[at:], f.buf[at+frameHeader+len(payload):f.w])
}

// atTurn ends looking ahead: what waits comes next.
func (f *frameReader) atTurn() { f.wait = 0 }
