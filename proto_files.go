// proto_files.go holds the command table and the handlers of verbs that touch
// files. It is apart from proto.go along the line of trust: everything here
// but the table runs for a user who is logged in and whose permissions the
// table has checked. Handlers parse, call fs.go and transfer.go, and reply.

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	commands     []command // in HELP order
	commandIndex = map[string]*command{}
	siteCommands []command
	siteIndex    = map[string]*command{}
)

// Filled here and not in the declaration: HELP and FEAT read the table they
// are in, which the compiler refuses as an initialization cycle.
func init() {
	fixed := func(line string) func(*session) string { return func(*session) string { return line } }
	when := func(on func(*session) bool, line string) func(*session) string {
		return func(s *session) string {
			if on(s) {
				return line
			}
			return ""
		}
	}
	overTCP := func(s *session) bool { return s.peer.IsValid() }
	hasTLS := func(s *session) bool { return s.srv.keys != nil && s.peer.IsValid() }

	commands = []command{
		// Access control: RFC 959 section 4.1.1.
		{verb: "USER", arg: argRequired, syntax: "NAME", help: "begin a login", run: (*session).cmdUSER},
		{verb: "PASS", syntax: "PASSWORD", help: "finish a login", run: (*session).cmdPASS},
		{verb: "ACCT", syntax: "TEXT", help: "is accepted and means nothing", run: (*session).cmdACCT},
		{verb: "REIN", arg: argNone, help: "log out and begin anew", run: (*session).cmdREIN},
		{verb: "QUIT", arg: argNone, help: "leave, after what is running", run: (*session).cmdQUIT},

		// Security: RFC 2228, RFC 4217.
		{verb: "AUTH", arg: argRequired, syntax: "TLS", help: "encrypt the control connection", feat: when(hasTLS, "AUTH TLS"), run: (*session).cmdAUTH},
		{verb: "PBSZ", arg: argRequired, syntax: "0", help: "come before PROT", feat: when(hasTLS, "PBSZ"), run: (*session).cmdPBSZ},
		{verb: "PROT", arg: argRequired, keep: true, syntax: "P|C", help: "encrypt data connections, or not", feat: when(hasTLS, "PROT"), run: (*session).cmdPROT},
		{verb: "CCC", arg: argNone, help: "is refused: the control connection stays private", run: (*session).cmdCCC},

		// Negotiation: RFC 2389, RFC 2640, RFC 7151.
		{verb: "FEAT", arg: argNone, help: "list extensions", run: (*session).cmdFEAT},
		{verb: "OPTS", arg: argRequired, syntax: "UTF8|MLST|HASH [VALUE]", help: "set options", feat: fixed("UTF8"), run: (*session).cmdOPTS},
		{verb: "CLNT", syntax: "NAME", help: "name the client", feat: fixed("CLNT"), run: (*session).cmdCLNT},
		{verb: "HOST", arg: argRequired, syntax: "NAME", help: "name the host; there is one", feat: fixed("HOST"), run: (*session).cmdHOST},
		{verb: "LANG", syntax: "TAG", help: "is refused: replies are in English", run: (*session).cmdLANG},
		{verb: "SYST", arg: argNone, help: "tell the system type", run: (*session).cmdSYST},
		{verb: "FRAM", arg: argRequired, syntax: "1", help: "go over to frames (docs/protocol.md)", feat: fixed("FRAM 1"), run: (*session).cmdFRAM},
		{verb: "HELP", syntax: "[COMMAND|SITE]", help: "explain commands", run: (*session).cmdHELP},
		{verb: "NOOP", keep: true, help: "do nothing", run: (*session).cmdNOOP},

		// Transfer parameters: RFC 959 section 4.1.2, RFC 2428, RFC 3659 section 5.
		{verb: "TYPE", arg: argRequired, keep: true, syntax: "A|I|L 8", help: "set the representation type", run: (*session).cmdTYPE},
		{verb: "STRU", arg: argRequired, keep: true, syntax: "F", help: "set the file structure", run: (*session).cmdSTRU},
		{verb: "MODE", arg: argRequired, keep: true, syntax: "S|Z", help: "set the transfer mode", feat: when((*session).zAllowed, "MODE Z"), run: (*session).cmdMODE},
		{verb: "PASV", arg: argNone, login: true, keep: true, help: "have the server listen for the data connection", feat: when(overTCP, "PASV"), run: (*session).cmdPASV},
		{verb: "EPSV", login: true, keep: true, off: quirkNoEPSV, syntax: "[1|2|ALL]", help: "the same for IPv4 and IPv6", feat: when(overTCP, "EPSV"), run: (*session).cmdEPSV},
		{verb: "PORT", arg: argRequired, login: true, keep: true, off: quirkNoActive, syntax: "h1,h2,h3,h4,p1,p2", help: "have the server connect for data", run: (*session).cmdPORT},
		{verb: "EPRT", arg: argRequired, login: true, keep: true, off: quirkNoEPSV | quirkNoActive, syntax: "|1|ADDRESS|PORT|", help: "the same for IPv4 and IPv6", feat: when(overTCP, "EPRT"), run: (*session).cmdEPRT},
		{verb: "REST", arg: argRequired, login: true, keep: true, syntax: "OFFSET", help: "begin the next transfer there", feat: fixed("REST STREAM"), run: (*session).cmdREST},
		{verb: "RANG", arg: argRequired, login: true, keep: true, syntax: "FIRST LAST", help: "send or digest only these bytes", feat: fixed("RANG STREAM"), run: (*session).cmdRANG},
		{verb: "ALLO", login: true, keep: true, syntax: "BYTES", help: "announce an upload's size", run: (*session).cmdALLO},

		// Transfers: RFC 959 section 4.1.3.
		{verb: "RETR", arg: argRequired, login: true, perm: permRead, data: true, syntax: "FILE", help: "send a file to the client", feat: fixed("TVFS"), run: (*session).cmdRETR},
		{verb: "STOR", arg: argRequired, login: true, perm: permWrite, data: true, syntax: "FILE", help: "take a file from the client", run: (*session).cmdSTOR},
		{verb: "APPE", arg: argRequired, login: true, perm: permWrite, data: true, syntax: "FILE", help: "add to a file", run: (*session).cmdAPPE},
		{verb: "STOU", login: true, perm: permWrite, data: true, syntax: "[NAME]", help: "take a file under a name nothing has", run: (*session).cmdSTOU},
		{verb: "ABOR", help: "end the running transfer", run: (*session).cmdABOR},
		{verb: "LIST", login: true, perm: permList, data: true, syntax: "[PATH]", help: "list as ls -l does", run: (*session).cmdLIST},
		{verb: "NLST", login: true, perm: permList, data: true, syntax: "[PATH|PATTERN]", help: "list bare names", run: (*session).cmdNLST},
		{verb: "MLSD", login: true, perm: permList, data: true, syntax: "[DIRECTORY]", help: "list for programs", run: (*session).cmdMLSD},
		{verb: "MLST", login: true, perm: permList, syntax: "[PATH]", help: "tell about one name, here", feat: (*session).featMLST, run: (*session).cmdMLST},
		{verb: "STAT", syntax: "[PATH]", help: "list here, or tell the session's state", run: (*session).cmdSTAT},

		// Files and directories: RFC 959 section 4.1.3, RFC 3659, MFMT and AVBL drafts.
		{verb: "PWD", arg: argNone, login: true, help: "tell the directory", run: (*session).cmdPWD},
		{verb: "CWD", arg: argRequired, login: true, syntax: "DIRECTORY", help: "change the directory", run: (*session).cmdCWD},
		{verb: "CDUP", arg: argNone, login: true, help: "change to the directory above", run: (*session).cmdCDUP},
		{verb: "MKD", arg: argRequired, login: true, perm: permMkdir, syntax: "DIRECTORY", help: "make a directory", run: (*session).cmdMKD},
		{verb: "RMD", arg: argRequired, login: true, perm: permDelete, syntax: "DIRECTORY", help: "remove an empty directory", run: (*session).cmdRMD},
		{verb: "DELE", arg: argRequired, login: true, perm: permDelete, syntax: "FILE", help: "delete a file", run: (*session).cmdDELE},
		{verb: "RNFR", arg: argRequired, login: true, perm: permRename, syntax: "PATH", help: "name what to rename", run: (*session).cmdRNFR},
		{verb: "RNTO", arg: argRequired, login: true, perm: permRename, syntax: "PATH", help: "rename it", run: (*session).cmdRNTO},
		{verb: "SIZE", arg: argRequired, login: true, syntax: "FILE", help: "tell a file's size", feat: fixed("SIZE"), run: (*session).cmdSIZE},
		{verb: "MDTM", arg: argRequired, login: true, syntax: "[YYYYMMDDHHMMSS] FILE", help: "tell, or set, the time of change", feat: fixed("MDTM"), run: (*session).cmdMDTM},
		{verb: "MFMT", arg: argRequired, login: true, perm: permWrite, syntax: "YYYYMMDDHHMMSS FILE", help: "set the time of change", feat: fixed("MFMT"), run: (*session).cmdMFMT},
		{verb: "MFF", arg: argRequired, login: true, perm: permWrite, syntax: "FACT=VALUE; FILE", help: "set facts", feat: fixed("MFF Modify;UNIX.mode;"), run: (*session).cmdMFF},
		{verb: "AVBL", login: true, perm: permList, syntax: "[DIRECTORY]", help: "tell the bytes left", feat: fixed("AVBL"), run: (*session).cmdAVBL},
		{verb: "HASH", arg: argRequired, login: true, perm: permRead, syntax: "FILE", help: "tell a file's digest", feat: (*session).featHASH, run: (*session).cmdHASH},
	}
	for i, d := range digests {
		commands = append(commands, command{verb: d.verb, arg: argRequired, login: true, perm: permRead, syntax: "FILE [FIRST END]",
			help: "tell a file's " + d.name, feat: fixed(d.verb), run: func(s *session, arg string) error { return s.hashX(i, arg) }})
	}
	commands = append(commands, command{verb: "SITE", arg: argRequired, syntax: "COMMAND", help: "berth's own commands; SITE HELP lists them", run: (*session).cmdSITE})
	// Known and not done: 502 tells a client more than 500 (RFC 959 section 4.2).
	for _, verb := range []string{"SMNT", "ADAT", "MIC", "CONF", "ENC", "LPRT", "LPSV", "CPSV", "SSCN"} {
		commands = append(commands, command{verb: verb})
	}
	for i := range commands {
		commands[i].class = commands[i].classify()
		commandIndex[commands[i].verb] = &commands[i]
	}
	// RFC 1123 section 4.1.3.1.
	for old, verb := range map[string]string{"XPWD": "PWD", "XCWD": "CWD", "XMKD": "MKD", "XRMD": "RMD", "XCUP": "CDUP", "XSHA": "XSHA1"} {
		commandIndex[old] = commandIndex[verb]
	}

	siteCommands = []command{
		{verb: "HELP", help: "list SITE commands", run: (*session).siteHELP},
		{verb: "CHMOD", arg: argRequired, login: true, perm: permWrite, syntax: "MODE PATH", help: "set permission bits", run: (*session).siteCHMOD},
		{verb: "UTIME", arg: argRequired, login: true, perm: permWrite, syntax: "YYYYMMDDHHMMSS FILE", help: "set the time of change", run: (*session).siteUTIME},
		{verb: "UMASK", only: quirkSiteUmask, syntax: "[MODE]", help: "is accepted and means nothing", run: (*session).siteUMASK},
		{verb: "QUOTA", login: true, help: "tell how much is used and left", run: (*session).siteQUOTA},
		{verb: "SCAN", arg: argRequired, onBox: true, syntax: "USER", help: "count a user's files anew", run: (*session).siteSCAN},
		{verb: "EXEC", arg: argRequired, login: true, syntax: "NAME [ARGUMENTS]", help: "run a command", run: (*session).siteEXEC},
		{verb: "WHO", login: true, noLogin: true, help: "list the sessions", run: (*session).siteWHO},
		{verb: "SAY", login: true, syntax: "[TEXT]", help: "tell everybody, or hear what was said", run: (*session).siteSAY},
	}
	for i := range siteCommands {
		siteIndex[siteCommands[i].verb] = &siteCommands[i]
	}
}

// path is what a client's path means in this session.
func (s *session) path(name string) (string, error) { return cleanPath(s.cwd, s.slashed(name)) }

// slashed is a path as the client meant it.
func (s *session) slashed(name string) string {
	if strings.IndexByte(name, '\\') >= 0 && s.has(quirkBackslash) {
		return strings.ReplaceAll(name, `\`, "/")
	}
	return name
}

// --- directories and names ---

func (s *session) cmdPWD(string) error {
	s.reply(codePath, quoted(s.cwd)+" is the current directory.")
	return nil
}

// quoted doubles the quotes in a path (RFC 959 appendix II).
//
//go:noinline
func quoted(p string) string { return `"` + strings.ReplaceAll(p, `"`, `""`) + `"` }

func (s *session) cmdCWD(arg string) error {
	p, err := s.path(arg)
	if err == nil {
		err = s.jail.isDir(p)
	}
	if err != nil {
		return s.fail(err)
	}
	s.cwd = p
	s.reply(codeFileDone, "Directory is now "+p)
	return nil
}

func (s *session) cmdCDUP(string) error { return s.cmdCWD("..") }

func (s *session) cmdMKD(arg string) error {
	p, err := s.path(arg)
	if err == nil {
		err = s.jail.mkdir(p)
	}
	if errors.Is(err, errExists) && s.has(quirkMkdExists) && s.jail.isDir(p) == nil {
		s.reply(codePath, quoted(p)+" is there already.")
		return nil
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.changed("directory made", p)
	s.reply(codePath, quoted(p)+" created.")
	return nil
}

func (s *session) cmdRMD(arg string) error {
	p, err := s.path(arg)
	if err == nil {
		err = s.jail.rmdir(p)
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.changed("directory removed", p)
	s.reply(codeFileDone, "Directory removed.")
	return nil
}

func (s *session) cmdDELE(arg string) error {
	var e entry
	p, err := s.path(arg)
	if err == nil {
		e, _ = s.jail.lstat(p) // for the log
		err = s.jail.remove(p)
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.deleted(p, e.size)
	s.reply(codeFileDone, "File deleted.")
	return nil
}

func (s *session) cmdRNFR(arg string) error {
	s.renameFrom = "" // one that fails must not leave an earlier one behind
	p, err := s.path(arg)
	if err == nil {
		_, err = s.jail.lstat(p)
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.renameFrom = p
	s.reply(codeNeedMore, "Ready for RNTO.")
	return nil
}

func (s *session) cmdRNTO(arg string) error {
	from := s.renameFrom
	if from == "" {
		s.reply(codeBadSequence, "RNFR comes first.")
		return nil
	}
	to, err := s.path(arg)
	if err == nil {
		// Replacing a file destroys it: that takes more than the right to rename.
		replace := s.user.can(permWrite) || s.user.can(permDelete)
		err = s.jail.rename(from, to, replace)
	}
	if err != nil {
		return s.noChange(to, err)
	}
	s.changed("renamed", from, "to", to)
	s.reply(codeFileDone, "Renamed.")
	return nil
}

func (s *session) cmdSIZE(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	e, err := s.jail.stat(p)
	if err == nil {
		err = e.mustBeFile()
	}
	if err != nil {
		return s.fail(err)
	}
	if s.converting() {
		// RFC 3659 section 4: the size in transfer, which nobody can tell without
		// reading the file.
		s.reply(codeDenied, "SIZE works with TYPE I.")
		return nil
	}
	s.reply(codeFileStatus, strconv.FormatInt(e.size, 10))
	return nil
}

func (s *session) cmdMDTM(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	e, err := s.jail.stat(p)
	if errors.Is(err, os.ErrNotExist) {
		// MDTM with a time in front sets it, if no file has that whole name.
		if stamp, name, ok := strings.Cut(arg, " "); ok {
			if _, isTime := parseFTPTime(stamp); isTime && name != "" {
				if !s.user.can(permWrite) {
					s.refused("MDTM", "path", arg)
					s.reply(codeDenied, "Permission denied: this account may not write.")
					return nil
				}
				return s.setTime(stamp, name, "%s %s") // Tcl reads it as an answer to MDTM
			}
		}
	}
	if err != nil {
		return s.fail(err)
	}
	s.reply(codeFileStatus, string(appendFTPTime(nil, e.sec, int(e.nsec/1e6))))
	return nil
}

func (s *session) cmdMFMT(arg string) error {
	stamp, name, _ := strings.Cut(arg, " ")
	if name == "" {
		s.reply(codeBadArgument, "Usage: MFMT YYYYMMDDHHMMSS FILE")
		return nil
	}
	return s.setTime(stamp, name, "Modify=%s; %s")
}

// timeChanged and modeChanged are changed for what a file has besides its name.
func (s *session) timeChanged(p string, t time.Time) {
	s.changed("time changed", p, "modified", t.UTC())
}

func (s *session) modeChanged(p string, mode uint32) {
	s.changed("mode changed", p, "mode", modeText(mode&0o777))
}

// setTime sets a file's time of change and tells it back.
func (s *session) setTime(stamp, name, done string) error {
	t, ok := parseFTPTime(stamp)
	if !ok {
		s.reply(codeBadArgument, "Times are YYYYMMDDHHMMSS, in UTC.")
		return nil
	}
	p, err := s.path(name)
	if err == nil {
		err = s.jail.setTimes(p, t)
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.timeChanged(p, t)
	s.reply(codeFileStatus, fmt.Sprintf(done, appendFTPTime(nil, t.Unix(), t.Nanosecond()/1e6), name))
	return nil
}

// cmdMFF sets facts (draft-somers-ftp-mfxx section 6): all that were named, or
// none.
func (s *session) cmdMFF(arg string) error {
	facts, name, ok := strings.Cut(arg, "; ")
	if !ok || name == "" {
		s.reply(codeBadArgument, "Usage: MFF Modify=YYYYMMDDHHMMSS;UNIX.mode=0644; FILE")
		return nil
	}
	var when time.Time
	mode, setMode, setTime := uint64(0), false, false
	for _, fact := range strings.Split(facts, ";") {
		key, value, _ := strings.Cut(fact, "=")
		switch upperASCII(key) {
		case "MODIFY":
			if when, setTime = parseFTPTime(value); !setTime {
				s.reply(codeBadArgument, "Times are YYYYMMDDHHMMSS, in UTC.")
				return nil
			}
		case "UNIX.MODE":
			var err error
			if mode, err = strconv.ParseUint(value, 8, 12); err != nil {
				s.reply(codeBadArgument, "Modes are octal, as 0644.")
				return nil
			}
			setMode = true
		default:
			s.reply(codeBadParameter, "Only Modify and UNIX.mode can be set.")
			return nil
		}
	}
	p, err := s.path(name)
	if err == nil && setMode {
		if err = s.jail.chmod(p, uint32(mode)); err == nil {
			s.modeChanged(p, uint32(mode))
		}
	}
	if err == nil && setTime {
		if err = s.jail.setTimes(p, when); err == nil {
			s.timeChanged(p, when)
		}
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.reply(codeFileStatus, facts+"; "+name)
	return nil
}

// cmdAVBL tells what may still be stored (draft-peterson-streamlined-ftp).
func (s *session) cmdAVBL(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	n, err := s.jail.free(p)
	if err != nil {
		return s.fail(err)
	}
	if left, limited := s.jail.left(); limited {
		n = min(n, left)
	}
	s.reply(codeFileStatus, strconv.FormatInt(n, 10))
	return nil
}

// --- digests ---

// cmdHASH is draft-bryan-ftpext-hash section 3; RANG before it chooses bytes.
func (s *session) cmdHASH(arg string) error {
	from, to := int64(0), int64(-1)
	if s.rangeTo >= s.rangeFrom {
		from, to = s.rangeFrom, s.rangeTo
	}
	sum, n, aborts, err := s.sum(s.digest, arg, from, func(size int64) int64 {
		if to >= 0 && to < size {
			return to + 1
		}
		return size
	})
	if err == nil {
		s.reply(codeFileStatus, fmt.Sprintf("%s %d-%d %s %s", digests[s.digest].name, from, max(n-1, 0), sum, arg))
	} else {
		s.fail(err)
	}
	s.lateAborts(aborts)
	return nil
}

// hashX is the X family: XSHA256 FILE [FIRST [END]], the name quoted or not,
// END not part of the range. A file of the whole name comes before numbers.
func (s *session) hashX(alg int, arg string) error {
	name, from, end := arg, int64(0), int64(-1)
	if p, err := s.path(arg); err != nil || !s.exists(p) {
		name, from, end = parseXHash(arg)
	}
	sum, _, aborts, err := s.sum(alg, name, from, func(size int64) int64 {
		if end >= 0 && end < size {
			return end
		}
		return size
	})
	if err == nil {
		s.reply(codeFileDone, strings.ToUpper(sum))
	} else {
		s.fail(err)
	}
	s.lateAborts(aborts)
	return nil
}

// lateAborts answers the ABORs that came while something ran: one 226 each.
//
//go:noinline
func (s *session) lateAborts(n int) {
	for range n {
		if s.fr == nil { // an X has no answer of its own
			s.reply(codeDataClosed, "ABOR done.")
		}
	}
}

func (s *session) exists(p string) bool {
	_, err := s.jail.lstat(p)
	return err == nil
}

// parseXHash takes a quoted name or up to two numbers at the end off arg.
func parseXHash(arg string) (name string, from, end int64) {
	end = -1
	var numbers []string
	if strings.HasPrefix(arg, `"`) {
		if i := strings.LastIndexByte(arg, '"'); i > 0 {
			name, numbers = strings.ReplaceAll(arg[1:i], `""`, `"`), strings.Fields(arg[i+1:])
		}
	}
	if name == "" {
		name = arg
		for len(numbers) < 2 {
			i := strings.LastIndexByte(name, ' ')
			if i <= 0 {
				break
			}
			if _, ok := parseOffset(name[i+1:]); !ok || name[i+1:] == "" {
				break
			}
			numbers = append([]string{name[i+1:]}, numbers...)
			name = name[:i]
		}
	}
	if len(numbers) > 0 {
		from, _ = parseOffset(numbers[0])
	}
	if len(numbers) > 1 {
		if n, ok := parseOffset(numbers[1]); ok {
			end = n
		}
	}
	return name, from, end
}

// sum computes a digest of a file from from to what end says of its size. The
// number of digests computed at once is bounded, and ABOR ends one.
func (s *session) sum(alg int, name string, from int64, end func(size int64) int64) (hexSum string, to int64, aborts int, err error) {
	p, err := s.path(name)
	if err != nil {
		return "", 0, 0, err
	}
	return s.sumOf(alg, p, from, end)
}

// sumOf is sum for a clean path.
func (s *session) sumOf(alg int, p string, from int64, end func(size int64) int64) (hexSum string, to int64, aborts int, err error) {
	f, e, err := s.jail.openFile(p)
	if err != nil {
		return "", 0, 0, err
	}
	defer f.Close()
	to = end(e.size)
	if from > to {
		return "", 0, 0, &offsetError{have: e.size, want: from}
	}
	whole := digests[alg].name == "SHA-256" && from == 0 && to == e.size
	if whole {
		if sum := keptDigest(int(f.Fd()), &e); sum != nil {
			return hexText(sum), to, 0, nil
		}
	}
	began := time.Now()
	digits, aborts, err := s.digestOf(f, p, from, to, alg)
	if err != nil {
		return "", 0, aborts, err
	}
	if whole {
		took := time.Since(began)
		var now entry
		if s.jail.mayMark(p) && fstat(f, &now) == nil && now.sameContent(&e) {
			keepDigest(int(f.Fd()), &e, digits)
		}
		s.changed("digest", p, "bytes", e.size, "dur", took.Round(time.Microsecond), "sha256", hexText(digits))
	}
	return hexText(digits), to, aborts, nil
}

// digestOf computes a digest of what lies in f, when there is a place for it.
func (s *session) digestOf(f *os.File, p string, from, to int64, alg int) (sum []byte, aborts int, err error) {
	h := digests[alg].make()
	x := newTransfer(0, nil)
	x.file = p
	s.flush()
	aborts, err = s.watched(x, s.verb, func() error {
		s.srv.digestQueue.Add(1)
		select {
		case s.srv.hashing <- struct{}{}:
			s.srv.digestQueue.Add(-1)
			defer func() { <-s.srv.hashing }()
		case <-x.stop:
			s.srv.digestQueue.Add(-1)
			return x.cancelled()
		}
		return digest(h, f, from, to, x.cancelled)
	})
	if err != nil {
		return nil, aborts, err
	}
	return h.Sum(nil), aborts, nil
}

// --- SITE ---

func (s *session) cmdSITE(arg string) error {
	verb, rest, _ := strings.Cut(strings.TrimLeft(arg, " "), " ")
	c := siteIndex[upperASCII(verb)]
	if c == nil || s.lacks(c) {
		s.reply(codeBadParameter, "SITE HELP lists what is known.")
		return nil
	}
	what := "SITE " + c.verb
	if code, _, text := s.mayNot(c.login && !(c.noLogin && s.operator()), 0, c.onBox, what, rest); code != 0 {
		s.reply(code, text)
	} else if c.arg == argRequired && rest == "" {
		s.reply(codeBadArgument, "Usage: "+what+" "+c.syntax)
	} else if code, _, text := s.mayNot(false, c.perm, false, what, rest); code != 0 {
		s.reply(code, text)
	} else {
		return c.run(s, rest)
	}
	return nil
}

func (s *session) siteHELP(string) error {
	var lines []string
	for i := range siteCommands {
		c := &siteCommands[i]
		if c.onBox && !s.operator() || s.lacks(c) {
			continue
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%-28s %s", strings.TrimRight(c.verb+" "+c.syntax, " "), c.help), " "))
	}
	s.replyLines(codeHelp, "These SITE commands are known here:", lines, "End")
	return nil
}

// siteUMASK is for who must hear 200; the modes of files are the daemon's umask's.
func (s *session) siteUMASK(string) error {
	s.reply(codeOK, "Noted.")
	return nil
}

func (s *session) siteCHMOD(arg string) error {
	mode, name, _ := strings.Cut(arg, " ")
	n, err := strconv.ParseUint(mode, 8, 12)
	if err != nil || name == "" {
		s.reply(codeBadArgument, "Usage: SITE CHMOD MODE PATH, with an octal mode as 0644.")
		return nil
	}
	p, err := s.path(name)
	if err == nil {
		err = s.jail.chmod(p, uint32(n))
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.modeChanged(p, uint32(n))
	s.reply(codeOK, "Mode changed.")
	return nil
}

// siteUTIME knows both forms in use: "TIME FILE", and lftp's and ncftp's
// "FILE ATIME MTIME CTIME UTC".
func (s *session) siteUTIME(arg string) error {
	f := strings.Split(arg, " ")
	if n := len(f); n >= 5 && upperASCII(f[n-1]) == "UTC" {
		name := strings.Join(f[:n-4], " ")
		if _, ok := parseFTPTime(f[n-3]); ok && name != "" {
			return s.utime(f[n-3], name)
		}
	}
	stamp, name, _ := strings.Cut(arg, " ")
	if len(stamp) == 12 { // ProFTPD's form is without seconds
		stamp += "00"
	}
	if _, ok := parseFTPTime(stamp); !ok || name == "" {
		s.reply(codeBadArgument, "Usage: SITE UTIME YYYYMMDDHHMMSS FILE, or SITE UTIME FILE ATIME MTIME CTIME UTC")
		return nil
	}
	return s.utime(stamp, name)
}

func (s *session) utime(stamp, name string) error {
	t, _ := parseFTPTime(stamp)
	p, err := s.path(name)
	if err == nil {
		err = s.jail.setTimes(p, t)
	}
	if err != nil {
		return s.noChange(p, err)
	}
	s.timeChanged(p, t)
	s.reply(codeOK, "Time changed.")
	return nil
}

// siteQUOTA tells what the ledger has, or leaves it to the disk where the
// kernel counts.
func (s *session) siteQUOTA(string) error {
	free, err := s.jail.free("/")
	if err != nil {
		return s.fail(err)
	}
	var lines []string
	if s.jail.balance != nil {
		bytes, files, known := s.jail.balance.usage()
		line := func(what string, used, limit int64) {
			switch {
			case !known:
				lines = append(lines, what+": being counted")
			case limit == 0:
				lines = append(lines, fmt.Sprintf("%s: %d used, no limit", what, used))
			default:
				lines = append(lines, fmt.Sprintf("%s: %d used, %d allowed, %d left", what, used, limit, max(limit-used, 0)))
			}
		}
		line("bytes", bytes, int64(s.user.QuotaBytes))
		line("files", files, s.user.QuotaFiles)
	}
	lines = append(lines, fmt.Sprintf("free on the disk: %d bytes", free))
	s.replyLines(codeStatus, "Quota of "+s.user.Name+":", lines, "End")
	return nil
}

// siteSCAN counts a user's home anew while he goes on working in it, for the
// operator on the box itself.
func (s *session) siteSCAN(arg string) error {
	u := s.srv.users.get(arg)
	if u == nil {
		s.reply(codeDenied, "There is no such user.")
		return nil
	}
	if u.Quota == "filesystem" {
		s.reply(codeBadParameter, "The kernel counts this user's files, by quota = \"filesystem\".")
		return nil
	}
	s.flush()
	was, is, err := s.srv.house.scan(u)
	if errors.Is(err, errOtherBerth) {
		s.reply(codeBusy, "Another berth counts this home; the log tells which.")
		return nil
	}
	if err != nil {
		return s.fail(err)
	}
	s.reply(codeStatus, scanResult(u.Name, was, is))
	return nil
}

// scanResult is what berth user scan prints.
//
//go:noinline
func scanResult(name string, was, is ledgerEntry) string {
	return fmt.Sprintf("%s: %d bytes in %d files (the ledger had %d bytes in %d)", name, is.Bytes, is.Files, was.Bytes, was.Files)
}

// operator tells whether the peer has the operator's requests, by the unix socket's
// word.
func (s *session) operator() bool { return s.isOperator }
