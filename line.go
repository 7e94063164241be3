// line.go makes lines of the bytes that arrive on a control connection. It is a
// file of its own because it is the first to see what strangers send, before
// any login, and is fuzzed as one piece. It knows no verbs and no sockets.

package main

import (
	"sync"
)

const (
	maxLine = 4096    // contract section 4: PATH_MAX and a verb
	maxSkip = 1 << 20 // of a line without end, before the session ends
)

type telnetState uint8

const (
	telnetData   telnetState = iota
	telnetIAC                // after IAC
	telnetOption             // after IAC WILL, WONT, DO, DONT
	telnetSub                // inside IAC SB
	telnetSubIAC             // IAC inside it
)

// Telnet commands (RFC 854).
const (
	telnetSE   = 240
	telnetDM   = 242
	telnetSB   = 250
	telnetWILL = 251
	telnetDONT = 254
	iac        = 255
)

type lineStatus uint8

const (
	lineNone lineStatus = iota // no whole line yet
	lineRead
	lineTooLong // told once, when the limit is passed; the rest is dropped
	lineEndless // maxSkip bytes without an end
)

// A lineReader makes lines of what arrives: ended by CR LF, LF or CR NUL, at
// most maxLine bytes, without Telnet commands. It buffers nothing beyond one
// read and one line, and is pooled, so that an idle session has none.
type lineReader struct {
	raw     [1024]byte
	r, w    int
	line    []byte
	telnet  telnetState
	cr      bool // a CR may be the first half of a line end
	bare    bool // the last line ended with LF alone
	skip    bool // the line was too long
	skipped int
}

var lineReaders = sync.Pool{New: func() any { return new(lineReader) }}

// takeLineReader gives the session a reader, dropLineReader takes it back.
func (s *session) takeLineReader() {
	if s.in == nil {
		s.in = lineReaders.Get().(*lineReader)
		s.in.reset()
	}
}

func (s *session) dropLineReader() {
	if s.in != nil && cap(s.in.line) <= len(s.in.raw) { // not one that a long line made large
		lineReaders.Put(s.in)
	}
	s.in = nil
}

// buffered tells whether bytes are waiting that make up no line yet, or may.
func (l *lineReader) buffered() bool {
	return l.r < l.w || len(l.line) > 0 || l.cr || l.skip || l.telnet != telnetData
}

func (l *lineReader) reset() {
	l.r, l.w, l.telnet, l.cr, l.skip, l.skipped = 0, 0, telnetData, false, false, 0
	l.line = l.line[:0]
}

// space is where the next read puts its bytes, all earlier ones being used up.
func (l *lineReader) space() []byte {
	if l.r == l.w {
		l.r, l.w = 0, 0
	}
	return l.raw[l.w:]
}

// got says that n bytes were read into space.
func (l *lineReader) got(n int) { l.w += n }

// next takes one line out of what was read. The slice holds until the next call.
func (l *lineReader) next() ([]byte, lineStatus) {
	for l.r < l.w {
		c := l.raw[l.r]
		l.r++
		switch l.telnet {
		case telnetIAC:
			l.telnet = telnetData
			switch {
			case c == iac: // an escaped 255
			case c >= telnetWILL && c <= telnetDONT:
				l.telnet = telnetOption
				continue
			case c == telnetSB:
				l.telnet = telnetSub
				continue
			case c >= telnetSE:
				continue // IP, DM, ABOR's AO and the like mean nothing by themselves
			case len(l.line) > 0 || l.skip:
				// No command, and in the middle of a line: a name with a byte 255
				// from a client that does not escape it.
				if st := l.put(iac); st != lineNone {
					l.r-- // c comes again, after the caller has heard
					return nil, st
				}
			default:
				// At the start of a line: lftp and tnftp send IAC DM with DM as
				// urgent data, which the kernel may have taken out of the stream.
			}
		case telnetOption:
			l.telnet = telnetData
			continue
		case telnetSub:
			switch c {
			case iac:
				l.telnet = telnetSubIAC
				continue
			case '\n': // never closed: nobody negotiates across a line end
				l.telnet = telnetData
			default:
				continue
			}
		case telnetSubIAC:
			l.telnet = telnetSub
			if c == telnetSE {
				l.telnet = telnetData
			}
			continue
		default:
			if c == iac {
				l.telnet = telnetIAC
				continue
			}
			if c >= telnetSE && len(l.line) == 0 && !l.skip {
				continue // a data mark or IP that lost its IAC; no verb begins so
			}
		}
		if l.cr {
			l.cr = false
			if c == '\n' || c == 0 {
				l.bare = false
				if line, ok := l.end(); ok {
					return line, lineRead
				}
				continue
			}
			if st := l.put('\r'); st != lineNone {
				l.r--
				return nil, st
			}
		}
		switch c {
		case '\r':
			l.cr = true
			continue
		case '\n':
			l.bare = true
			if line, ok := l.end(); ok {
				return line, lineRead
			}
			continue
		}
		if st := l.put(c); st != lineNone {
			return nil, st
		}
	}
	return nil, lineNone
}

// put adds one byte to the line.
func (l *lineReader) put(c byte) lineStatus {
	if l.skip {
		if l.skipped++; l.skipped == maxSkip {
			return lineEndless
		}
		return lineNone
	}
	if len(l.line) == maxLine {
		l.skip, l.skipped = true, 0
		return lineTooLong
	}
	l.line = append(l.line, c)
	return lineNone
}

// end closes a line; ok is false for the tail of one that was too long.
func (l *lineReader) end() (line []byte, ok bool) {
	line = l.line
	l.line = l.line[:0]
	if l.skip {
		l.skip = false
		return nil, false
	}
	return line, true
}
