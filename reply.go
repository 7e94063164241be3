// reply.go is all that a session says: the reply codes, the one place that lines and
// answers leave by, which refuses CR and LF, and the one where an error of fs.go,
// auth.go or transfer.go becomes a code. It is apart from proto.go because lines and
// frames both speak through it.

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Reply codes, named by the situation they tell of (RFC 959 section 4.2.1;
// RFC 4217 and RFC 2428 where noted).
const (
	codeDataOpening   = 150
	codeOK            = 200
	codeSuperfluous   = 202
	codeStatus        = 211
	codeDirStatus     = 212
	codeFileStatus    = 213
	codeHelp          = 214
	codeSystem        = 215
	codeReady         = 220
	codeGoodbye       = 221
	codeDataClosed    = 226
	codePassive       = 227
	codeExtPassive    = 229 // RFC 2428
	codeLoggedIn      = 230
	codeLoggedInByTLS = 232 // RFC 2228
	codeStartTLS      = 234 // RFC 4217
	codeFileDone      = 250
	codePath          = 257
	codeNeedPassword  = 331
	codeNeedMore      = 350
	codeClosing       = 421
	codeNoData        = 425
	codeAborted       = 426
	codeBusy          = 450
	codeLocalError    = 451
	codeNoSpace       = 452
	codeUnknown       = 500
	codeBadArgument   = 501
	codeNotDone       = 502
	codeBadSequence   = 503
	codeBadParameter  = 504
	codeNeedTLSData   = 521 // RFC 4217
	codeBadFamily     = 522 // RFC 2428
	codeNotLoggedIn   = 530
	codeDeniedByRule  = 534 // RFC 2228
	codeBadProtection = 536 // RFC 2228
	codeDenied        = 550
	codeNotWritable   = 551
	codeQuota         = 552
	codeBadName       = 553
	codeBadRestart    = 554 // RFC 1123 section 4.1.3.4
)

// --- replies ---

var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, outBuffer); return &b }}

// reply queues one line. Texts are sentences; CR and LF in them become spaces,
// so that nothing a client sent can forge a reply, and IAC is escaped.
func (s *session) reply(code int, text string) {
	if s.fr != nil {
		s.answer(&answer{Code: code, Text: text})
		return
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(code, ' ', text)
	s.counted(code)
	s.tapesReply(code, ' ', text)
}

// replyLines queues a multi-line reply: first and last with the code, the
// lines between with a space in front.
func (s *session) replyLines(code int, first string, lines []string, last string) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.put(code, '-', first)
	for _, l := range lines {
		s.putText(" " + l)
	}
	s.put(code, ' ', last)
	s.counted(code)
	s.tapesReply(code, '-', first)
}

// replyNow queues a line and sends all there is; errors no longer matter.
func (s *session) replyNow(code int, text string) {
	s.reply(code, text)
	s.flush()
}

func (s *session) counted(code int) {
	if s.verb != "" {
		s.srv.metrics.command(s.verb, code)
	}
}

func (s *session) put(code int, sep byte, text string) {
	if s.out == nil {
		s.out = (*outBuffers.Get().(*[]byte))[:0]
	}
	s.out = append(s.out, byte('0'+code/100), byte('0'+code/10%10), byte('0'+code%10), sep)
	s.putText(text)
}

func (s *session) putText(text string) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\r', '\n', 0:
			s.out = append(s.out, ' ')
		case iac:
			s.out = append(s.out, iac, iac) // RFC 854
		default:
			s.out = append(s.out, c)
		}
	}
	s.out = append(s.out, '\r', '\n')
	if len(s.out) >= outFlush {
		s.flushLocked()
	}
}

// flush sends the queued replies in one write.
func (s *session) flush() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.flushLocked()
}

func (s *session) flushLocked() error {
	if len(s.out) > 0 && s.outErr == nil {
		if !s.patient {
			s.allowReply()
		}
		began := time.Now()
		_, s.outErr = s.conn.Write(s.out)
		s.away += time.Since(began) // a client that reads slowly
	}
	if cap(s.out) == outBuffer { // one that grew for a long reply is not kept
		b := s.out
		outBuffers.Put(&b)
	}
	s.out = nil
	return s.outErr
}

// replyReason is reply for those who speak frames with a word for programs.
func (s *session) replyReason(code int, reason, text string) {
	if s.fr != nil {
		s.answer(&answer{Code: code, Reason: reason, Text: text})
		return
	}
	s.reply(code, text)
}

// replyFor is the one place where an error becomes a reply: the code, the word by
// which programs that speak frames tell it from others, and the text. What is not
// known is logged and told as a local error, without Go's text.
func (s *session) replyFor(err error) (code int, reason, text string) {
	var off *offsetError
	var over *quotaError
	switch {
	case err == nil:
		return codeOK, "", "OK."
	case errors.As(err, &off):
		return codeBadRestart, "offset", s.restartText(off)
	case errors.As(err, &over) && over.full:
		return codeQuota, "quota", "Your quota has no room for another file; delete something first."
	case errors.As(err, &over):
		return codeQuota, "quota", fmt.Sprintf("Your quota has %d bytes left, too few for this; delete something first.", over.left)
	case errors.Is(err, errCounting):
		return codeBusy, "counting", "What you have stored is being counted; try again in a moment."
	case errors.Is(err, errAborted), errors.Is(err, errKicked), errors.Is(err, errDrain):
		return codeAborted, "cancelled", "Transfer aborted."
	case errors.Is(err, errNoPort):
		return codeNoData, "no_port", "No passive port is free; try again in a moment."
	case errors.Is(err, errNoData):
		return codeNoData, "no_data_connection", "Cannot open the data connection; check that a firewall lets it through, or try the other of PASV/EPSV and PORT/EPRT."
	case errors.Is(err, errStalled):
		return codeAborted, "stalled", "Nothing moved for too long; transfer ended."
	case errors.Is(err, errControlGone):
		return codeAborted, "client_gone", "The control connection ended before the transfer did."
	case errors.Is(err, errCutShort):
		return codeAborted, "cut_short", "The data connection ended without TLS close_notify, so the file may be cut short; what arrived is kept to be resumed."
	case errors.Is(err, errTooDeep):
		return codeBadName, "too_deep", fmt.Sprintf("Directories lie more than %d deep in each other there; go into one of them first.", maxDepth)
	case errors.Is(err, errBomb):
		return codeQuota, "bomb", "The compressed data grows beyond all measure; send it with MODE S."
	case errors.Is(err, errChanged):
		return codeLocalError, "changed", "The file became shorter while it was read; try again."
	case errors.Is(err, errReserved):
		return codeBadName, "bad_name", "Names that begin with .berth- are the server's own; choose another."
	case errors.Is(err, errBadName):
		return codeBadName, "bad_name", "A name cannot hold NUL, CR or LF."
	case errors.Is(err, errIsDir), errors.Is(err, syscall.EISDIR):
		return codeDenied, "is_directory", "That is a directory."
	case errors.Is(err, errNotRegular):
		return codeDenied, "not_regular", "That is neither a file nor a directory."
	case errors.Is(err, errReadOnly):
		return codeDenied, "read_only", "This share is read-only."
	case errors.Is(err, errShareRoot):
		return codeDenied, "top_directory", "The top directory cannot be changed."
	case errors.Is(err, errExists):
		return codeDenied, "exists", "That name is taken."
	case errors.Is(err, errBusy):
		return codeBusy, "busy", "An upload is running there; try again when it is done."
	case errors.Is(err, fs.ErrNotExist):
		return codeDenied, "not_found", "No such file or directory."
	case errors.Is(err, errAcross):
		return codeDenied, "across", "A directory cannot be moved to or from a share; move its files."
	case errors.Is(err, syscall.EXDEV):
		return codeDenied, "across", "That leads out of your files, or across to another share."
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ELOOP):
		return codeDenied, "denied", "Permission denied."
	case errors.Is(err, syscall.ENOTDIR):
		return codeDenied, "not_directory", "That is not a directory."
	case errors.Is(err, syscall.ENOTEMPTY):
		return codeDenied, "not_empty", "The directory is not empty."
	case errors.Is(err, syscall.ENAMETOOLONG):
		return codeBadName, "bad_name", "That name is too long."
	case errors.Is(err, syscall.EINVAL) && (s.verb == "RNTO" || s.verb == "move"):
		return codeBadName, "bad_name", "A directory cannot be moved into itself, nor to a name that the disk cannot store."
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EILSEQ):
		return codeBadName, "bad_name", "The disk cannot store that name."
	case errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return codeQuota, "quota", "Storage allocation exceeded; delete something first."
	case errors.Is(err, syscall.ENOSPC):
		return codeNoSpace, "disk_full", "The disk is full."
	case errors.Is(err, syscall.EROFS) && s.uploads():
		return codeNotWritable, "read_only", "The disk is read-only."
	case errors.Is(err, syscall.EROFS):
		return codeDenied, "read_only", "The disk is read-only."
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return codeBusy, "busy", "Too many open files in the server; try again in a moment."
	case isNetError(err):
		return codeAborted, "broken", "The data connection broke."
	}
	s.srv.log.Error("local error", "session", s.id, "user", s.userName(), "addr", s.addrText(), "proto", s.proto, "verb", s.verb, "error", err)
	return codeLocalError, "local", "A local error stopped this; the operator finds it in the log."
}

func (s *session) restartText(off *offsetError) string {
	if off.have == 0 {
		return fmt.Sprintf("Cannot go on at %d: nothing is here; start at 0.", off.want)
	}
	if s.fr != nil {
		return fmt.Sprintf("Cannot go on at %d: %d bytes are here; use offset %d to go on, or 0 to start anew.", off.want, off.have, off.have)
	}
	return fmt.Sprintf("Cannot restart at %d: %d bytes are here; use REST %d to go on, or REST 0 to start anew.", off.want, off.have, off.have)
}

// isNetError tells the network's errors from the disk's: splice and sendfile
// bring either through the same call.
func isNetError(err error) bool {
	for _, e := range []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ETIMEDOUT, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENOTCONN} {
		if errors.Is(err, e) {
			return true
		}
	}
	var alert tls.AlertError
	var rec tls.RecordHeaderError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &alert) || errors.As(err, &rec) || strings.HasPrefix(err.Error(), "tls: ") ||
		strings.Contains(err.Error(), "zlib: ") || strings.Contains(err.Error(), "flate: ")
}

// fail replies for an error and goes on.
func (s *session) fail(err error) error {
	code, reason, text := s.replyFor(err)
	return s.failed(err, code, reason, text)
}

func (s *session) failed(err error, code int, reason, text string) error {
	if s.fr != nil {
		a := &failure{answer: answer{Code: code, Reason: reason, Text: text}}
		var off *offsetError
		if errors.As(err, &off) {
			a.Have = &off.have
		}
		s.answer(a)
		return nil
	}
	s.reply(code, text)
	return nil
}

// mayNot is why the session may not do something: code 0 if it may. What a user
// was not allowed to do is logged, with what it was about.
func (s *session) mayNot(login bool, perm permission, onBox bool, what, arg string) (code int, reason, text string) {
	switch {
	case login && s.user == nil && s.fr != nil:
		return codeNotLoggedIn, "not_logged_in", "Log in first."
	case login && s.user == nil:
		return codeNotLoggedIn, "not_logged_in", "Log in with USER and PASS first."
	case onBox && !s.operator():
		s.refused(what, "path", arg)
		return codeDenied, "denied", "Only root and the group " + adminGroup + " on this machine may do that, through the local socket."
	case perm != 0 && !s.user.can(perm):
		s.refused(what, "path", arg)
		s.notBegun(os.ErrPermission, "denied")
		return codeDenied, "denied", "Permission denied: this account may not " + perm.String() + "."
	}
	return 0, "", ""
}
