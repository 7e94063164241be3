package main

// The codec of frames by itself: headers at their limits, and a reader that must find
// the same frames however the bytes are cut, whether they are taken one by one or
// looked at ahead of their turn. Sessions that speak frames are in framed_test.go.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFrameHeader(t *testing.T) {
	for _, c := range []struct {
		length uint32
		want   int
		err    error
	}{
		{0, 0, nil}, {1, 1, nil}, {255, 255, nil}, {256, 256, nil}, {65535, 65535, nil}, {65536, 65536, nil},
		{maxFrame - 1, maxFrame - 1, nil}, {maxFrame, maxFrame, nil}, {maxFrame + 1, maxFrame + 1, errFrameLong},
		{1<<31 - 1, 1<<31 - 1, errFrameLong}, {1 << 31, 1<<31 - 1, errFrameLong}, {math.MaxUint32, 1<<31 - 1, errFrameLong},
	} {
		for _, kind := range []byte{'R', 'D', 0, ' ', 0x7f, 0xff} {
			b := append(binary.BigEndian.AppendUint32(nil, c.length), kind)
			got, n, err := parseHeader(append(b, "what follows"...))
			if got != frameType(kind) || n != c.want || err != c.err {
				t.Errorf("%x: %q, %d, %v; want %q, %d, %v", b, byte(got), n, err, kind, c.want, c.err)
			}
			if c.err == nil {
				if back := appendHeader([]byte("x"), got, n); string(back) != "x"+string(b) {
					t.Errorf("%x became %x", b, back)
				}
			}
		}
	}
}

func TestFrameTypeNames(t *testing.T) {
	for kind, want := range map[frameType]string{'R': "R", '~': "~", ' ': "0x20", 0: "0x00", 0x7f: "0x7f", 0xff: "0xff", '\n': "0x0a"} {
		if got := kind.String(); got != want {
			t.Errorf("%d is shown as %q; want %q", byte(kind), got, want)
		}
	}
	for _, kind := range toServer + toClient {
		if kind < 'A' || kind > 'Z' {
			t.Errorf("the type %q is no capital", kind)
		}
	}
}

func TestAppendFrame(t *testing.T) {
	got := appendFrame(appendFrame(nil, framePing, nil), frameRequest, []byte("{}"))
	if want := "\x00\x00\x00\x00P\x00\x00\x00\x02R{}"; string(got) != want {
		t.Errorf("%q; want %q", got, want)
	}
}

// A seenFrame is a frame as a reader gave it; long stands for one over the limit.
type seenFrame struct {
	kind    frameType
	payload string
	long    bool
}

// feed gives a reader the next piece of data, at most most bytes.
func feed(t testing.TB, f *frameReader, data []byte, most int) []byte {
	space := f.space()
	if len(space) == 0 {
		t.Fatal("the reader has no space")
	}
	n := copy(space, data[:min(most, len(data))])
	f.got(n)
	return data[n:]
}

// readWhole takes frames one by one, whole.
func readWhole(t testing.TB, f *frameReader, data []byte, most int) (seen []seenFrame) {
	open := false
	for {
		if !open {
			ok, err := f.next()
			if err != nil {
				return append(seen, seenFrame{kind: f.kind, long: true})
			}
			open = ok
		}
		if open {
			if p, ok := f.whole(); ok {
				seen = append(seen, seenFrame{kind: f.kind, payload: string(p)})
				open = false
				if f.left != 0 {
					t.Fatalf("%d bytes are left of a whole frame", f.left)
				}
				continue
			}
		}
		if len(data) == 0 {
			return seen
		}
		data = feed(t, f, data, most)
	}
}

// readPieces takes payloads as they come, at most bite bytes at a time.
func readPieces(t testing.TB, f *frameReader, data []byte, most, bite int) (seen []seenFrame) {
	for {
		ok, err := f.next()
		if err != nil {
			return append(seen, seenFrame{kind: f.kind, long: true})
		}
		if ok {
			s := seenFrame{kind: f.kind}
			for f.left > 0 {
				if p := f.take(bite); len(p) > 0 {
					if len(p) > bite {
						t.Fatalf("%d bytes were taken where %d were asked for", len(p), bite)
					}
					s.payload += string(p)
					continue
				}
				if len(data) == 0 {
					return seen
				}
				data = feed(t, f, data, most)
			}
			seen = append(seen, s)
			continue
		}
		if len(data) == 0 {
			return seen
		}
		data = feed(t, f, data, most)
	}
}

// readAheadFrames looks at each frame before its turn. Those that drop picks are taken out then,
// all others must come in their turn as they were.
func readAheadFrames(t testing.TB, f *frameReader, data []byte, most, room int, drop func(frameType) bool) (dropped, kept []seenFrame) {
	for {
		kind, payload, ok, fits, err := f.ahead(room)
		switch {
		case err != nil, !fits:
			f.atTurn()
			return dropped, readWhole(t, f, data, most)
		case !ok:
			if len(data) == 0 {
				f.atTurn()
				return dropped, readWhole(t, f, nil, most)
			}
			data = feed(t, f, data, most)
		case drop(kind):
			dropped = append(dropped, seenFrame{kind: kind, payload: string(payload)})
			f.drop(payload)
		default:
			f.keep(payload)
		}
		if len(f.buf) > 4*room+frameBuffer {
			t.Fatalf("looking %d bytes ahead took a buffer of %d", room, len(f.buf))
		}
	}
}

// frameSamples are sequences of frames whose ends lie on either side of every size that
// the reader's buffers have.
func frameSamples() map[string][]byte {
	many := func(n int, payload string) (b []byte) {
		for range n {
			b = appendFrame(b, frameRequest, []byte(payload))
		}
		return b
	}
	text := string(testBytes(2 * maxFrame))
	s := map[string][]byte{
		"nothing":      nil,
		"empty":        many(3, ""),
		"small":        many(7, `{"do":"time"}`),
		"kinds":        append(appendFrame(appendFrame(many(1, "ab"), framePing, []byte("p")), frameCancel, nil), many(1, "cd")...),
		"half header":  append(many(2, "x"), 0, 0, 0),
		"half payload": append(many(1, "x"), 0, 0, 0, 9, 'D', 'a'),
		"too long":     append(many(2, "xy"), 0, 4, 0, 1, 'R', 'z'),
		"no frame":     []byte("GET / HTTP/1.1\r\n\r\n"),
	}
	for _, n := range []int{1024 - frameHeader, 1024, frameBuffer - frameHeader, frameBuffer, 2 * frameBuffer, maxFrame} {
		for _, d := range []int{-1, 0, 1} {
			if n+d <= maxFrame {
				s[fmt.Sprint("payload of ", n+d)] = append(appendFrame(many(1, "before"), frameData, []byte(text[:n+d])), many(2, "after")...)
			}
		}
	}
	return s
}

// plainFrames cuts data into frames the plain way.
func plainFrames(data []byte) (seen []seenFrame) {
	for len(data) >= frameHeader {
		n := binary.BigEndian.Uint32(data)
		kind := frameType(data[4])
		if n > maxFrame {
			return append(seen, seenFrame{kind: kind, long: true})
		}
		if uint32(len(data)-frameHeader) < n {
			return seen
		}
		seen = append(seen, seenFrame{kind: kind, payload: string(data[frameHeader : frameHeader+n])})
		data = data[frameHeader+n:]
	}
	return seen
}

func samePings(kind frameType) bool { return kind == framePing || kind == frameCancel }

// checkReader compares every way of reading with the plain one.
func checkReader(t testing.TB, data []byte, already, most, bite, room int) {
	t.Helper()
	want := plainFrames(data)
	already = min(already, len(data))
	reader := func() *frameReader { return newFrameReader(data[:already]) }
	rest := data[already:]
	if got := readWhole(t, reader(), rest, most); !slices.Equal(got, want) {
		t.Fatalf("whole, in pieces of %d with %d before: %s; want %s", most, already, shownFrames(got), shownFrames(want))
	}
	if got := readPieces(t, reader(), rest, most, bite); !slices.Equal(got, want) {
		t.Fatalf("by bites of %d, in pieces of %d with %d before: %s; want %s", bite, most, already, shownFrames(got), shownFrames(want))
	}
	dropped, kept := readAheadFrames(t, reader(), rest, most, room, samePings)
	i := 0
	for _, f := range want {
		switch {
		case i < len(dropped) && f == dropped[i]:
			i++
		case len(kept) > 0 && f == kept[0]:
			kept = kept[1:]
		default:
			t.Fatalf("ahead by %d, in pieces of %d with %d before: %s is missing", room, most, already, shownFrames([]seenFrame{f}))
		}
	}
	if i != len(dropped) || len(kept) > 0 {
		t.Fatalf("ahead by %d, in pieces of %d with %d before: more than there is: %s, %s", room, most, already, shownFrames(dropped[i:]), shownFrames(kept))
	}
}

func shownFrames(seen []seenFrame) string {
	var b strings.Builder
	for _, f := range seen {
		fmt.Fprintf(&b, "%v(%d %.20q %v) ", f.kind, len(f.payload), f.payload, f.long)
	}
	return b.String()
}

// TestFrameReaderSplits: the same frames come out however the input is cut.
func TestFrameReaderSplits(t *testing.T) {
	for name, data := range frameSamples() {
		t.Run(name, func(t *testing.T) {
			for _, most := range []int{1, 2, 3, 4, 5, 6, 7, 1019, 1024, 1025, frameBuffer, 1 << 20} {
				if most < 100 && len(data) > 8<<10 {
					continue // those sizes are about small frames
				}
				checkReader(t, data, 0, most, 1+most/2, maxAhead)
			}
			for _, already := range []int{1, 4, 5, 6, 1024, 5000} {
				checkReader(t, data, already, 777, 100, 1<<10)
			}
			if len(data) < 64 { // every way to cut it in two
				for i := range len(data) + 1 {
					checkReader(t, data, i, len(data)+1, 3, maxAhead)
				}
			}
		})
	}
}

// TestFrameReaderGivesBack: what a large frame took is given back when it is used up, and
// a frame that is looked ahead at costs no more than may wait.
func TestFrameReaderGivesBack(t *testing.T) {
	f := newFrameReader(nil)
	big := appendFrame(nil, frameData, testBytes(maxFrame))
	if got := readWhole(t, f, big, len(big)); len(got) != 1 {
		t.Fatal(shownFrames(got))
	}
	if f.buffered() {
		t.Fatal("something is left")
	}
	f.shrink()
	if len(f.buf) != len(f.first) || f.pooled != nil {
		t.Errorf("%d bytes are kept, pooled %v", len(f.buf), f.pooled != nil)
	}
	f.got(copy(f.space(), "\x00\x00\x00\x01"))
	if f.shrink(); !f.buffered() {
		t.Error("shrink has lost half a header")
	}
	f.got(copy(f.space(), "Px"))
	if got := readWhole(t, f, nil, 1); len(got) != 1 || got[0].payload != "x" {
		t.Errorf("after it: %s", shownFrames(got))
	}
	f = newFrameReader(nil)
	for data := big; len(data) > 0; {
		_, _, ok, room, err := f.ahead(maxAhead)
		if ok || err != nil {
			t.Fatal("there is a frame", err)
		}
		if !room {
			break
		}
		data = feed(t, f, data, 1<<20)
	}
	if len(f.buf) > maxAhead {
		t.Errorf("a frame too large to wait took %d bytes", len(f.buf))
	}
}

// TestRequestParser: what is no request at all ends the connection; what is one and wrong
// is told what.
func TestRequestParser(t *testing.T) {
	for _, c := range []struct {
		in        string
		bad, fate string // parts of them; "" for none
	}{
		{in: `{"do":"list"}`},
		{in: " {\"do\":\"list\"} \n"},
		{in: `{}`},
		{in: `{"do":"put","size":0,"offset":9223372036854775807,"sha256":"","args":[1,{}]}`},
		{in: `{"do":"list","id":{"deep":[1,2,null]}}`},
		{in: `{"do":"list","id":"` + strings.Repeat("x", maxID-2) + `"}`},
		{in: `{"do":"list","id":"` + strings.Repeat("x", maxID-1) + `"}`, bad: "An id may have 256 bytes"},
		{in: ``, fate: "not JSON"},
		{in: `{"do":`, fate: "not JSON"},
		{in: `{"do":"list"`, fate: "not JSON"},
		{in: `{"do":"list"}{"do":"list"}`, fate: "something behind"},
		{in: `{"do":"list"}x`, fate: "something behind"},
		{in: "{\"do\":\"list\"}\x00", fate: "something behind"},
		{in: `[]`, fate: "is a JSON object"},
		{in: `"list"`, fate: "is a JSON object"},
		{in: `12`, fate: "is a JSON object"},
		{in: `GET / HTTP/1.1`, fate: "not JSON"},
		{in: "{\"do\":\"\xff\"}", fate: "not UTF-8"},
		{in: strings.Repeat(`{"id":`, 20000), fate: "not JSON"},
		{in: `{"do":5}`, bad: `The field "do" is a string`},
		{in: `{"do":"get","offset":"5"}`, bad: `The field "offset" is a whole number`},
		{in: `{"do":"get","offset":1.5}`, bad: `The field "offset" is a whole number`},
		{in: `{"do":"get","offset":9223372036854775808}`, bad: `"offset"`},
		{in: `{"do":"get","offset":1e3}`, bad: `"offset"`},
		{in: `{"do":"get","offset":0x10}`, fate: "not JSON"},
		{in: `{"do":"get","offset":-9223372036854775808}`},
		{in: `{"do":"list","recursive":"yes"}`, bad: `The field "recursive" is true or false`},
		{in: `{"do":"list","path":{}}`, bad: `The field "path" is a string`},
		{in: `{"do":"exec","rows":70000}`, bad: `"rows"`},
		{in: `{"do":"list","path_bytes":"%%"}`, bad: "base64"},
		{in: `{"do":"list","path_bytes":5}`, bad: `"path_bytes"`},
		{in: `{"do":"list","ofset":1}`, bad: `no field "ofset"`},
	} {
		_, bad, err := parseRequest([]byte(c.in))
		var p *protocolError
		if err != nil && !errors.As(err, &p) {
			t.Errorf("%.60q: %v is no error of protocol", c.in, err)
		}
		fate := ""
		if p != nil {
			fate = p.text
		}
		if !strings.Contains(bad, c.bad) || (bad == "") != (c.bad == "") || !strings.Contains(fate, c.fate) || (fate == "") != (c.fate == "") {
			t.Errorf("%.60q: bad %q, error %q; want %q, %q", c.in, bad, fate, c.bad, c.fate)
		}
	}
}

// frameInputs is what the clients of testdata/frames send once they speak frames: the
// seeds.
func frameInputs(t testing.TB) (inputs [][]byte) {
	files, err := filepath.Glob("testdata/frames/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden frames", err)
	}
	for _, file := range files {
		var s []byte
		for _, st := range readTranscript(t, file).steps {
			if b, ok := frameStepBytes(t, st); ok {
				s = append(s, b...)
			}
		}
		inputs = append(inputs, s)
	}
	return inputs
}

// FuzzFrame: whatever the bytes and however they come, the reader finds what a plain
// loop finds, and nothing panics.
func FuzzFrame(f *testing.F) {
	for _, in := range frameInputs(f) {
		f.Add(in, uint16(0), uint16(7), uint16(1000))
	}
	for _, data := range frameSamples() {
		if len(data) <= 4<<10 {
			f.Add(data, uint16(3), uint16(1), uint16(50))
		}
	}
	f.Add(bytes.Repeat([]byte("\x00\x00\x00\x00P"), 400), uint16(1024), uint16(3), uint16(20))
	f.Fuzz(func(t *testing.T, data []byte, already, most, room uint16) {
		checkReader(t, data, int(already), 1+int(most), 1+int(most)/3, frameHeader+int(room))
	})
}

// TestFrameSeedsAreThere: the fuzz targets have the golden sessions to begin with.
func TestFrameSeedsAreThere(t *testing.T) {
	kinds := map[frameType]bool{}
	for _, in := range frameInputs(t) {
		for _, f := range plainFrames(in) {
			kinds[f.kind] = true
		}
	}
	for _, k := range toServer {
		if !kinds[frameType(k)] {
			t.Errorf("no golden session sends a frame of type %c", k)
		}
	}
	if _, err := os.Stat("testdata/frames"); err != nil {
		t.Fatal(err)
	}
}
