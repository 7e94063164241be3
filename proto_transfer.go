// proto_transfer.go holds the handlers of verbs that set up and run data
// connections: TYPE to ALLO, PASV to EPRT, RETR and STOR. It is
// apart from proto_files.go as another question: that one asks what may happen
// to a name, this one how bytes get in and out. Like there, all of it runs for
// a user who is logged in and whom the table has let pass.

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// --- transfer parameters ---

func (s *session) cmdTYPE(arg string) error {
	switch upperASCII(strings.Trim(arg, " ")) {
	case "A", "A N":
		s.ascii = true
		s.reply(codeOK, "Type is ASCII.")
	case "I", "L 8", "L8":
		s.ascii = false
		s.reply(codeOK, "Type is binary.")
	case "A T", "A C", "E", "E N", "E T", "E C", "L", "L 7", "L7", "L 16", "L 32", "L 36":
		s.reply(codeBadParameter, "Types are A, I and L 8.")
	default:
		s.reply(codeBadArgument, "Types are A, I and L 8.")
	}
	return nil
}

// converting tells whether line ends are to be changed: TYPE A does nothing by
// itself unless it is configured, as in vsftpd.
func (s *session) converting() bool { return s.ascii && s.srv.config().Transfer.ASCII }

func (s *session) cmdSTRU(arg string) error {
	switch upperASCII(strings.Trim(arg, " ")) {
	case "F":
		s.reply(codeOK, "Structure is file.")
	case "R", "P":
		s.reply(codeBadParameter, "The only structure is F.")
	default:
		s.reply(codeBadArgument, "The only structure is F.")
	}
	return nil
}

func (s *session) zAllowed() bool { return s.srv.config().Transfer.ModeZ }

func (s *session) cmdMODE(arg string) error {
	switch upperASCII(strings.Trim(arg, " ")) {
	case "S":
		s.modeZ = false
		s.reply(codeOK, "Mode is stream.")
		return nil
	case "Z":
		if s.zAllowed() {
			s.modeZ = true
			s.reply(codeOK, "Mode is deflated stream.")
			return nil
		}
		fallthrough
	case "B", "C":
		s.reply(codeBadParameter, "The only mode is S.")
	default:
		s.reply(codeBadArgument, "The only mode is S.")
	}
	return nil
}

func (s *session) cmdREST(arg string) error {
	s.rest, s.rangeFrom, s.rangeTo = 0, 0, -1 // also if this one is refused
	n, ok := parseOffset(strings.Trim(arg, " "))
	if !ok {
		s.reply(codeBadArgument, "REST takes a number of bytes, from 0 to 9223372036854775807.")
		return nil
	}
	if s.converting() && n > 0 {
		s.reply(codeBadParameter, "REST works with TYPE I.") // RFC 3659 section 5.4
		return nil
	}
	s.rest = n
	s.reply(codeNeedMore, fmt.Sprintf("The next transfer begins at %d.", n))
	return nil
}

// parseOffset reads an unsigned number of at most 63 bits: digits and nothing
// else, so that signs, spaces and hexadecimal are refused.
func parseOffset(arg string) (int64, bool) {
	for i := 0; i < len(arg); i++ {
		if arg[i] < '0' || arg[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(arg, 10, 64)
	return n, err == nil
}

// cmdRANG is draft-bryan-ftp-range section 3: both ends are part of the range,
// and "1 0" is none.
func (s *session) cmdRANG(arg string) error {
	s.rest, s.rangeFrom, s.rangeTo = 0, 0, -1
	a, b, _ := strings.Cut(strings.Trim(arg, " "), " ")
	from, ok1 := parseOffset(a)
	to, ok2 := parseOffset(b)
	if !ok1 || !ok2 || a == "" || b == "" || from > to && (from != 1 || to != 0) {
		s.reply(codeBadArgument, "RANG takes the first and the last byte: RANG 0 99 is the first hundred.")
		return nil
	}
	if from > to {
		s.reply(codeNeedMore, "No range.")
		return nil
	}
	s.rangeFrom, s.rangeTo = from, to
	s.reply(codeNeedMore, fmt.Sprintf("Range %d to %d.", from, to))
	return nil
}

// cmdALLO notes the size of the next upload, which then is not finished with
// less (contract section 5). "ALLO n R m" has a record size as well.
func (s *session) cmdALLO(arg string) error {
	if s.has(quirkIgnoreALLO) {
		s.reply(codeOK, "OK.")
		return nil
	}
	first, _, _ := strings.Cut(strings.Trim(arg, " "), " ")
	n, ok := parseOffset(first)
	if !ok || first == "" {
		s.reply(codeBadArgument, "ALLO takes a number of bytes.")
		return nil
	}
	s.allo = n
	s.reply(codeOK, "OK.")
	return nil
}

// --- data connections ---

const activeOff = "Data connections need TCP; on this socket use STAT, or the framed protocol."

func (s *session) cmdPASV(string) error {
	if s.epsvAll {
		s.reply(codeBadArgument, "EPSV ALL was given.") // RFC 2428 section 4
		return nil
	}
	if !s.peer.IsValid() {
		s.reply(codeNotDone, activeOff)
		return nil
	}
	if !s.local.Is4() || !s.reached.Is4() {
		s.reply(codeNoData, "PASV cannot tell an IPv6 address; use EPSV.")
		return nil
	}
	tell, err := s.srv.passiveAddress(s.peer, s.reached)
	if err != nil {
		s.srv.log.Error("passive address", "session", s.id, "user", s.userName(), "addr", s.addrText(), "error", err)
		s.reply(codeNoData, "The passive address cannot be told; use EPSV.")
		return nil
	}
	return s.passive(codePassive, func(port uint16) string {
		a := tell.As4()
		return fmt.Sprintf("Entering Passive Mode (%d,%d,%d,%d,%d,%d)", a[0], a[1], a[2], a[3], port>>8, port&255)
	})
}

// passive arms a passive port for PASV or EPSV, an earlier one is closed, and replies
// what tell makes of its number.
func (s *session) passive(code int, tell func(port uint16) string) error {
	s.arm.dismiss()
	cfg := s.srv.config()
	q := portRequest{ctx: s.srv.ctx, local: s.local, from: s.dataFrom(), owner: s.id, accept: s.mayBringData,
		keep: s.via.IsValid(), hold: portHold, ports: cfg.Passive.Ports}
	arm, port, err := s.srv.ports.arm(q)
	aborts := 0
	if err == errPortsHeld {
		// The wait can be ended by ABOR, by the client's end, and by the operator.
		x := newTransfer(portWait, nil)
		x.attended = true
		s.flush()
		aborts, err = s.watched(x, s.verb, func() (err error) {
			if arm, port, err = s.srv.ports.await(q, x.stop); err != nil && x.cancelled() != nil {
				err = x.cancelled()
			}
			return err
		})
	}
	if err == nil && aborts > 0 {
		arm.disarm()
		err = errAborted
	}
	if err != nil {
		s.fail(err)
	} else {
		s.arm = arm
		s.reply(code, tell(port))
	}
	s.lateAborts(aborts)
	return nil
}

func (s *session) cmdEPSV(arg string) error {
	if !s.peer.IsValid() {
		s.reply(codeNotDone, activeOff)
		return nil
	}
	family := "1"
	if !s.local.Is4() {
		family = "2"
	}
	switch a := upperASCII(strings.Trim(arg, " ")); a {
	case "", family:
	case "ALL":
		s.epsvAll = true
		s.reply(codeOK, "From now on EPSV only.")
		return nil
	case "1", "2":
		s.reply(codeBadFamily, fmt.Sprintf("Use the control connection's own family, (%s).", family))
		return nil
	default:
		if _, ok := parseOffset(a); ok {
			s.reply(codeBadFamily, fmt.Sprintf("Unknown network protocol, use (%s).", family))
		} else {
			s.reply(codeBadArgument, "Usage: EPSV [1|2|ALL]")
		}
		return nil
	}
	return s.passive(codeExtPassive, func(port uint16) string {
		return fmt.Sprintf("Entering Extended Passive Mode (|||%d|)", port)
	})
}

// parsePORT reads "h1,h2,h3,h4,p1,p2" (RFC 959 section 4.1.2).
func parsePORT(arg string) (netip.AddrPort, bool) {
	f := strings.Split(strings.Trim(arg, " "), ",")
	if len(f) != 6 {
		return netip.AddrPort{}, false
	}
	var b [6]byte
	for i, part := range f {
		if part == "" || len(part) > 3 {
			return netip.AddrPort{}, false
		}
		n := 0
		for _, c := range []byte(part) {
			if c < '0' || c > '9' {
				return netip.AddrPort{}, false
			}
			n = n*10 + int(c-'0')
		}
		if n > 255 {
			return netip.AddrPort{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5])), true
}

// parseEPRT reads "|1|132.235.1.2|6275|" with any delimiter (RFC 2428 section
// 2). family is false for a protocol that is neither 1 nor 2.
func parseEPRT(arg string) (to netip.AddrPort, ok, family bool) {
	arg = strings.Trim(arg, " ")
	if len(arg) < 2 || arg[0] < 33 || arg[0] > 126 {
		return to, false, true
	}
	f := strings.Split(arg, arg[:1])
	if len(f) != 5 || f[0] != "" || f[4] != "" {
		return to, false, true
	}
	if f[1] != "1" && f[1] != "2" {
		_, number := parseOffset(f[1])
		return to, false, !number || f[1] == ""
	}
	a, err := netip.ParseAddr(f[2])
	if err != nil || a.Zone() != "" || a.Is4() != (f[1] == "1") {
		return to, false, true
	}
	port, ok := parseOffset(f[3])
	if !ok || f[3] == "" || port > 65535 {
		return to, false, true
	}
	return netip.AddrPortFrom(a, uint16(port)), true, true
}

func (s *session) cmdPORT(arg string) error {
	if s.epsvAll {
		s.reply(codeBadArgument, "EPSV ALL was given.")
		return nil
	}
	to, ok := parsePORT(arg)
	if !ok {
		s.reply(codeBadArgument, "Usage: PORT h1,h2,h3,h4,p1,p2")
		return nil
	}
	return s.connectTo("PORT", to)
}

func (s *session) cmdEPRT(arg string) error {
	if s.epsvAll {
		s.reply(codeBadArgument, "EPSV ALL was given.")
		return nil
	}
	to, ok, family := parseEPRT(arg)
	switch {
	case !family:
		s.reply(codeBadFamily, "Network protocol not supported, use (1,2).")
		return nil
	case !ok:
		s.reply(codeBadArgument, "Usage: EPRT |1|ADDRESS|PORT| or EPRT |2|ADDRESS|PORT|")
		return nil
	}
	return s.connectTo("EPRT", to)
}

// connectTo arms an active data connection: to the client itself and nobody
// else, and to no privileged port (no bounce, RFC 2577 section 3).
func (s *session) connectTo(verb string, to netip.AddrPort) error {
	if !s.peer.IsValid() {
		s.reply(codeNotDone, activeOff)
		return nil
	}
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(s.peer, to.Port()) // lftp sends "|2|::|port|" for its own address
	}
	if to.Addr().Unmap() != s.peer || to.Port() < lowestDataPort {
		s.refused(verb, "asked", to.String())
		s.reply(codeBadArgument, fmt.Sprintf("Data connections go to your own address and to ports from %d on.", lowestDataPort))
		return nil
	}
	s.arm.disarm()
	s.arm = dataArm{target: netip.AddrPortFrom(s.peer.WithZone(s.local.Zone()), to.Port())}
	s.reply(codeOK, "OK.")
	return nil
}

// transferFunc moves the bytes of one transfer once the connection is there.
type transferFunc func(x *transfer) error

// transfer runs one data connection from 150 to the moment before the final
// reply: it opens it, announces it, encrypts it, moves the bytes, closes it.
// p is what the bytes are of, and total how many they are, if that is known.
// count is told of them as they move; nil: nobody is.
func (s *session) transfer(upload bool, p string, total int64, opening string, count func(int64), move transferFunc) (x *transfer, aborts int, err error) {
	cfg := s.srv.config()
	if err := s.mayUseClearData(); err != nil {
		return nil, 0, err
	}
	x = newTransfer(cfg.Limits.DataTimeout.std(), s.limiterFor(upload))
	x.attended, x.file = upload && !s.has(quirkHangUp), p
	x.total.Store(total)
	x.count = count
	ended := false
	defer func() {
		if !ended { // a panic: run's recover ends the session, and this the data connection
			x.close(errControlGone)
		}
	}()
	s.flush()
	moved := s.elsewhere()
	aborts, err = s.watched(x, s.verb, func() error {
		mode := "active"
		if s.arm.ln != nil {
			mode = "passive"
		}
		err := x.open(s.srv.ports, &s.arm, s.local, s.bringsData)
		s.srv.metrics.dataConnection(mode, transferResult(err))
		s.tapes('!', mode+" data connection: "+transferResult(err))
		if err != nil {
			return err
		}
		s.replyNow(codeDataOpening, opening)
		if s.private {
			st, err := x.startTLS(s.srv.keys.data(s.tls, upload))
			if err != nil {
				return err
			}
			if _, err := s.srv.keys.checkData(s.tls, st); err != nil {
				s.turnedDown(s.userName(), s.verb, "TLS session not resumed")
				return err
			}
		}
		if count == nil {
			moved() // a listing is made while it is sent, and see sent
		}
		return move(x)
	})
	ended = true
	x.close(err)
	moved()
	return x, aborts, err
}

// direction is how log and metrics call it.
func direction(upload bool) string {
	if upload {
		return "upload"
	}
	return "download"
}

var errClearData = errors.New("this user's data must be private")

// mayUseClearData refuses PROT C where a password would be refused in clear:
// a user's files deserve no less than his password.
func (s *session) mayUseClearData() error {
	if s.private || s.tls == nil {
		return nil
	}
	if yes, _ := clearTaken(s.user, s.srv.config().TLS.Require, s.nearby()); yes {
		return nil
	}
	return errClearData
}

// conclude replies for a transfer, and for the ABORs that came while it ran:
// 426 and 226 for one that ended it, 226 for one that came too late (RFC 959
// section 4.1.3, field rule 12).
func (s *session) conclude(err error, done string, aborts int) {
	switch {
	case err == nil:
		s.reply(codeDataClosed, done)
	case errors.Is(err, errClearData):
		s.reply(codeNeedTLSData, "Your files travel encrypted only; use PROT P.")
	case errors.Is(err, errTLSNotResumed):
		s.reply(codeBadFamily, "The data connection must resume the control connection's TLS session.")
	default:
		s.fail(err)
	}
	s.lateAborts(aborts)
}

// --- RETR ---

func (s *session) cmdRETR(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	f, e, err := s.jail.openFile(p)
	if err != nil {
		return s.noChange(p, err)
	}
	defer f.Close()
	defer s.jail.set.use(e.id())()
	from, size := s.rest, e.size
	if s.rangeTo >= s.rangeFrom {
		from = s.rangeFrom
		size = min(size, max(s.rangeTo, s.rangeTo+1)) // RANG to 2^63-1 must not wrap
	}
	if from > e.size {
		return s.noChange(p, &offsetError{have: e.size, want: from})
	}
	left := max(size-from, 0)
	return s.download(p, left, fmt.Sprintf("Opening data connection (%d bytes).", left), func(x *transfer) error {
		return x.send(f, from, left, coding{ascii: s.converting(), z: s.modeZ})
	})
}

// download runs a transfer to the client, with its log line and metrics.
func (s *session) download(p string, total int64, opening string, move transferFunc) error {
	counted := s.startTransfer(false)
	defer counted.end("error") // of no effect after recordTransfer: only a panic comes to it
	x, aborts, err := s.transfer(false, p, total, opening, counted.add, move)
	s.recordTransfer(p, counted, x, err, nil)
	s.conclude(err, "Transfer complete.", aborts)
	return nil
}

// startTransfer counts a transfer of the session's user in.
func (s *session) startTransfer(upload bool) *countedTransfer {
	return s.srv.metrics.transferStarted(s.user.Name, direction(upload), s.proto)
}

// recordTransfer tells log and metrics how a transfer ended.
func (s *session) recordTransfer(p string, counted *countedTransfer, x *transfer, err error, sum []byte) {
	result := transferResult(err)
	dur := time.Since(counted.started)
	var moved int64
	if x != nil {
		moved = x.moved.Load()
	}
	counted.end(result)
	s.tapes('!', fmt.Sprintf("%s of %d bytes: %s", s.verb, moved, result))
	s.transferLog(result, counted.direction, p, moved, dur, err, sum)
}

// transferResult names how a transfer ended, for log and metrics.
func transferResult(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, errAborted):
		return "aborted"
	case errors.Is(err, errKicked):
		return "kicked"
	case errors.Is(err, errDrain):
		return "drained"
	case errors.Is(err, errStalled):
		return "stalled"
	case errors.Is(err, errNoData):
		return "no_data_connection"
	case errors.Is(err, errCutShort):
		return "cut_short"
	case errors.Is(err, errShort), errors.Is(err, errSize):
		return "short"
	case errors.Is(err, errDigest):
		return "digest_mismatch"
	case errors.Is(err, errControlGone):
		return "client_gone"
	case errors.Is(err, errClearData), errors.Is(err, errTLSNotResumed):
		return "refused"
	case errors.As(err, new(*quotaError)):
		return "over_quota"
	case noRoom(err):
		return "no_space"
	case isNetError(err):
		return "broken"
	}
	return "error"
}

// --- STOR, APPE, STOU ---

func (s *session) cmdSTOR(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	return s.upload(p, uploadStore, s.rest, "")
}

func (s *session) cmdAPPE(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	return s.upload(p, uploadAppend, -1, "")
}

// cmdSTOU stores under a name that nothing has and tells it as RFC 1123
// section 4.1.2.9 says.
func (s *session) cmdSTOU(arg string) error {
	if arg == "" {
		arg = "file"
	}
	p, err := s.path(arg)
	if err == nil {
		p, err = s.jail.unique(p)
	}
	if err != nil {
		return s.fail(err)
	}
	return s.upload(p, uploadUnique, 0, "FILE: "+baseName(p))
}

// errShort is an upload that ended before ALLO's size.
var errShort = errors.New("fewer bytes than ALLO announced")

// uploaded hands a complete upload to its user's command. It is queued before the
// client hears that it is complete; what cannot be queued is logged and counted
// and no fault of the upload.
func (s *session) uploaded(p string, u *upload) {
	if s.user.OnUpload == "" {
		return
	}
	s.srv.hooks.add(uploadEvent{User: s.user.Name, Command: s.user.OnUpload, Path: p, File: s.jail.diskPath(p), Dir: s.user.Home,
		Size: u.size, SHA256: hexText(u.sum), Address: s.addrText(), Protocol: s.proto, Time: time.Now(), Session: s.id})
}

// refuseUpload replies for an upload that ends before it begins.
func (s *session) refuseUpload(p string, err error) error {
	if errors.As(err, new(*quotaError)) {
		s.srv.metrics.quotaRejected(s.user.Name)
	}
	return s.noChange(p, err)
}

// noChange replies for a change or a transfer that could not begin, and has the operator
// know why: what leaves a line when it is done leaves one when it is not. A name that
// cannot be one (p is "") is the client's own affair.
func (s *session) noChange(p string, err error) error {
	code, reason, text := s.replyFor(err)
	s.notBegun(err, reason)
	if p != "" && reason != "local" { // which has a line already
		s.turnedDown(s.user.Name, s.verb, reason, "path", p, "error", err)
	}
	return s.failed(err, code, reason, text)
}

// notBegun counts a transfer that ended before it began, if that is what was asked for.
// A camera that may not write any more stores nothing, as one whose link breaks.
func (s *session) notBegun(err error, reason string) {
	direction := "download"
	if s.uploads() {
		direction = "upload"
	} else if s.verb != "RETR" && s.verb != "get" {
		return
	}
	result := transferResult(err)
	if result == "error" && reason != "local" && reason != "busy" && reason != "read_only" { // which are the box's trouble
		result = "refused"
	}
	s.srv.metrics.ended(s.user.Name, direction, s.proto, result).Inc()
}

// uploads tells whether the session was asked to take a file.
//
//go:noinline
func (s *session) uploads() bool {
	return s.verb == "STOR" || s.verb == "APPE" || s.verb == "STOU" || s.verb == "put"
}

// upload runs one upload from the staging file to its name. It is finished
// only if everything of contract section 5 holds; else it is an interruption.
func (s *session) upload(p string, kind uploadKind, offset int64, opening string) error {
	cfg := s.srv.config()
	allo := s.allo
	s.allo = -1
	if s.modeZ || s.converting() {
		allo = -1 // the announced size is not the stored one
	}
	if s.modeZ && offset > 0 {
		s.reply(codeBadRestart, "Uploads restart with MODE S.")
		return nil
	}
	u, err := s.jail.create(p, kind, offset, cfg.Transfer.Durable)
	if err != nil {
		return s.refuseUpload(p, err)
	}
	defer u.interrupt() // of no effect after commit
	if allo > 0 && !s.jail.rotate {
		// What will not fit is told before it is sent. Where that makes room, it waits
		// for the data connection: nothing goes for an upload that never comes.
		if err := u.announced(allo); err != nil {
			return s.refuseUpload(p, err)
		}
	}
	if opening == "" {
		opening = "Ready to take the file."
	}
	var sum hash.Hash
	if cfg.Transfer.Digest == "always" {
		sum = sha256.New()
	}
	total := int64(0)
	if u.start == 0 { // else nobody knows whether ALLO means all or the rest
		total = max(allo, 0)
	}
	counted := s.startTransfer(true)
	defer counted.end("error") // of no effect after settle: only a panic comes to it
	x, aborts, err := s.transfer(true, p, total, opening, counted.add, func(x *transfer) error {
		if allo > 0 && s.jail.rotate {
			if err := u.announced(allo); err != nil {
				return err
			}
		}
		if err := u.copyPrefix(x.cancelled); err != nil {
			return err
		}
		if sum != nil && u.start > 0 {
			// What was there already is part of the file.
			if err := digest(sum, u.file, 0, u.start, x.cancelled); err != nil {
				return err
			}
		}
		notified, err := x.receive(u, coding{ascii: s.converting(), z: s.modeZ}, sum, &s.srv.splices)
		if err == nil && !notified {
			s.srv.metrics.missingCloseNotify.Inc()
			s.srv.log.Warn("upload without close_notify", "session", s.id, "user", s.user.Name, "addr", s.addrText(), "path", p, "bytes", u.size)
			if cfg.TLS.StrictEOF {
				return errCutShort
			}
		}
		return err
	})
	if err == nil && !s.has(quirkHangUp) && !s.controlAlive() {
		err = errControlGone
	}
	if err == nil && allo >= 0 && u.size-u.start < allo && u.size < allo {
		err = errShort
	}
	if err == nil && sum != nil {
		u.sum = sum.Sum(nil)
	}
	err = s.settle(p, u, x, counted, err)
	if errors.Is(err, errShort) {
		s.reply(codeAborted, fmt.Sprintf("Only %d of the %d bytes that ALLO announced arrived; resume with REST %d.", u.size, allo, u.size))
		s.lateAborts(aborts)
		return nil
	}
	done := "Transfer complete."
	if kind == uploadUnique {
		// What BSD servers say and Perl's Net::FTP reads the name from.
		done = "Transfer complete (unique file name:" + baseName(p) + ")."
	}
	if u.sum != nil {
		done += " SHA-256 " + hexText(u.sum)
	}
	if left, limited := s.jail.left(); limited {
		done += fmt.Sprintf(" %d bytes left of the quota.", left)
	}
	s.conclude(err, done, aborts)
	return nil
}

// settle ends an upload, whichever front end it came by: as a file, if err is nil,
// else as whatever is kept of it. It tells on_upload, metrics and log, and returns
// how it ended.
func (s *session) settle(p string, u *upload, x *transfer, counted *countedTransfer, err error) error {
	if err == nil {
		if err = u.commit(); err == nil {
			s.uploaded(p, u)
		}
	}
	switch {
	case errors.As(err, new(*quotaError)):
		s.srv.metrics.quotaRejected(s.user.Name)
		u.refuse()
	case noRoom(err), errors.Is(err, errDigest):
		u.refuse()
	}
	s.recordTransfer(p, counted, x, err, u.sum)
	u.interrupt()
	return err
}

func (s *session) cmdABOR(string) error {
	s.arm.dismiss()
	s.reply(codeDataClosed, "Nothing to abort.")
	return nil
}
