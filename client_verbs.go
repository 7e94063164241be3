// client_verbs.go is the table of the client's verbs: what each takes, what help
// says of it, and what runs. It is apart from main.go's table of the daemon's verbs
// because of its size; verbs.go reads both.

package main

import "slices"

// Options that several verbs take.
var (
	connectionOptions = []option{
		{name: "port", short: 'p', arg: "PORT", help: "the box's port, 2121 unless said otherwise", check: portNumber},
		{name: "plain", help: "no TLS: everything, the password too, goes in clear text"},
		{name: "tls", help: "TLS to this machine too, where it is not needed"},
		{name: "fingerprint", arg: "sha256:HEX", help: "the box's certificate has to be this one"},
		{name: "ca", arg: "FILE", help: "the box's certificate has to be in FILE, or signed by one that is"},
		{name: "key", arg: "FILE", help: "log in with the key in FILE, made by berth keygen"},
		{name: "password-file", arg: "FILE", help: "the password is the first line of FILE"},
		{name: "timeout", arg: "TIME", help: "how long the box may be silent before the connection counts as lost", def: "60s", check: aDuration},
	}
	quietOption   = option{name: "quiet", short: 'q', help: "say nothing but what goes wrong"}
	verboseOption = option{name: "verbose", short: 'v', help: "say more"}
	jsonOption    = option{name: "json", help: "print JSON, one object a line"}

	transferOptions = []option{
		{name: "jobs", short: 'j', arg: "N", help: "work over N connections at once", check: aboveZero},
		{name: "preserve", help: "keep permission bits and times of change"},
		{name: "limit-rate", arg: "SIZE", help: "at most SIZE bytes a second, as 500KiB, in all", check: aSize},
		{name: "retry", arg: "TIME", help: "how long to try again after the connection was lost; 0: not at all", def: "5m", check: aDuration},
	}
	recursiveOption = option{name: "recursive", short: 'r', help: "directories with all that is in them"}
	continueOption  = option{name: "continue", short: 'c', help: "go on with what an earlier, interrupted run has left; what is there already is not sent again"}
)

// with is a verb's own options, those it shares, and those of a connection. It is
// not inlined: written out in each of the table's entries it would be 20 KB.
//
//go:noinline
func with(own []option, more ...[]option) []option {
	return append(append(slices.Clone(own), slices.Concat(more...)...), connectionOptions...)
}

// clientVerbs is the client's part of the table.
func clientVerbs() []verb {
	say := []option{quietOption, verboseOption, jsonOption}
	list := []verb{
		{name: "ls", args: "[HOST:PATH ...]", max: -1, words: remoteWords, run: runLs,
			help: "list files",
			options: with([]option{
				{name: "long", short: 'l', help: "with mode, size and time"},
				{name: "all", short: 'a', help: "names that begin with a dot, too"},
				{name: "recursive", short: 'R', help: "and what is below"},
				{name: "color", arg: "WHEN", help: "auto, always or never", def: "auto", values: []string{"auto", "always", "never"}},
			}, say),
			examples: []example{
				{"berth ls -l ann@box:photos", "sizes and times of what is in photos"},
				{"berth ls 'box:photos/*.jpg'", "quoted, so that the box finds the names and not the shell"},
			}},
		{name: "get", args: "HOST:PATH ... DIR|FILE|-", min: 1, max: -1, words: bothWords, run: runGet,
			help:    "fetch files",
			text:    "Several names, and patterns as 'box:photos/*.jpg', go into a directory, the current one if none is\nnamed; \"-\" is standard output. Every file is written beside its name and takes it when its SHA-256 has\nbeen compared. A connection that is lost is made again, and the file goes on where both sides agree.",
			options: with([]option{recursiveOption, continueOption}, transferOptions, say),
			examples: []example{
				{"berth get -r ann@box:photos .", "the directory photos and all that is in it"},
				{"berth get box:backup.tar - | tar t", "to another program"},
			}},
		{name: "put", args: "FILE ... HOST:PATH", min: 1, max: -1, words: bothWords, run: runPut,
			help:    "send files",
			text:    "Several names go into a directory; a last name that ends in \"/\" is one, and is made if it is not\nthere. \"-\" is standard input. A file takes its name on the box when all of it has arrived and its SHA-256\nagrees; until then the old one stays. A connection that is lost is made again, and the file goes on.",
			options: with([]option{recursiveOption, continueOption}, transferOptions, say),
			examples: []example{
				{"berth put -r photos ann@box:", "the directory photos and all that is in it"},
				{"tar c . | berth put - box:backup.tar", "what another program writes"},
			}},
		{name: "sync", args: "SRC DST", min: 2, max: 2, words: bothWords, run: runSync,
			help: "make one tree like the other",
			text: "One of the two is on a box. As with rsync, dir/ means what is in dir, and dir means dir itself. Files\nwhose size and time of change agree are not touched.",
			options: with([]option{
				{name: "delete", help: "delete what SRC has not"},
				{name: "max-delete", arg: "N", help: "delete nothing if it would be more than N files and directories", check: wholeNumber},
				{name: "exclude", arg: "PATTERN", help: "leave names alone, on both sides; *, **, ?, [a-z]; / in front: from the top; / behind: directories", multi: true},
				{name: "include", arg: "PATTERN", help: "do not leave these alone; the first of all patterns that fits counts", multi: true},
				{name: "dry-run", short: 'n', help: "say what would be done, and do nothing"},
				{name: "checksum", help: "compare by SHA-256 and not by time"},
				{name: "modify-window", arg: "TIME", help: "times that differ by no more are the same", def: "0", check: aDuration},
			}, transferOptions, say),
			examples: []example{
				{"berth sync -n --delete photos/ ann@box:photos/", "what would have to be done"},
				{"berth sync ann@box:logs/ logs/ --exclude '*.tmp'", "fetch what is new"},
			}},
		{name: "cat", args: "HOST:PATH ...", min: 1, max: -1, words: remoteWords, run: runCat,
			help:    "print files",
			options: with(nil, []option{quietOption}),
			examples: []example{
				{"berth cat box:log/today.txt", "to the terminal"},
				{"berth cat box:a.csv box:b.csv > both.csv", "one behind the other"},
			}},
		{name: "rm", args: "HOST:PATH ...", min: 1, max: -1, words: remoteWords, run: runRm,
			help:    "delete files",
			options: with([]option{{name: "recursive", short: 'r', help: "directories with all that is in them"}, {name: "force", short: 'f', help: "do not mind what is not there"}}, say),
			examples: []example{
				{"berth rm 'box:photos/*.tmp'", "what the pattern finds on the box"},
				{"berth rm -r box:old", "a directory and all that is in it"},
			}},
		{name: "mv", args: "HOST:PATH ... PATH", min: 2, max: -1, words: remoteWords, run: runMv,
			help:    "rename files on the box",
			options: with(nil, say),
			examples: []example{
				{"berth mv box:a.txt box:b.txt", "a file of that name is replaced"},
				{"berth mv box:a.txt box:b.txt box:texts/", "into a directory"},
			}},
		{name: "mkdir", args: "HOST:PATH ...", min: 1, max: -1, words: remoteWords, run: runMkdir,
			help:    "make directories",
			options: with([]option{{name: "parents", short: 'p', other: "port", help: "those above, too, and do not mind if it is there; with a number behind it, the port as everywhere"}}, say),
			examples: []example{
				{"berth mkdir box:photos", "one"},
				{"berth mkdir -p box:photos/2026/11", "with those above"},
			}},
		{name: "df", args: "[HOST: ...]", max: -1, words: remoteWords, run: runDf,
			help:    "tell how much is stored and how much may be",
			options: with([]option{{name: "bytes", short: 'b', help: "in bytes, not in KiB, MiB, GiB"}}, say),
			examples: []example{
				{"berth df ann@box:", "used, allowed, and free on the disk"},
				{"berth df --json box:", "for programs"},
			}},
		{name: "hash", args: "HOST:PATH ...", min: 1, max: -1, words: remoteWords, run: runHash,
			help:    "tell digests of files, computed on the box",
			text:    "The lines are those of sha256sum, so sha256sum -c compares them with files here.",
			options: with([]option{{name: "algorithm", short: 'a', arg: "NAME", help: "sha256, sha512, sha1, md5 or crc32", def: "sha256", values: []string{"sha256", "sha512", "sha1", "md5", "crc32"}}}, say),
			examples: []example{
				{"berth hash box:backup.tar", "without fetching it"},
				{"berth hash 'box:*.jpg' | sha256sum -c", "are the copies here the same?"},
			}},
		{name: "touch", args: "HOST:PATH ...", min: 1, max: -1, words: remoteWords, run: runTouch,
			help:    "set times of change, or make empty files",
			options: with([]option{{name: "date", short: 'd', arg: "TIME", help: "not now, but TIME: 2026-11-21T12:00:00Z, or 2026-11-21 12:00 as the clock here says", check: aTime}}, say),
			examples: []example{
				{"berth touch box:flag", "made if it is not there"},
				{"berth touch -d 2026-11-21T12:00:00Z box:a.jpg", "when it was changed"},
			}},
		{name: "chmod", args: "MODE HOST:PATH ...", min: 2, max: -1, words: remoteWords, run: runChmod,
			help:    "set permission bits",
			options: with(nil, say),
			examples: []example{
				{"berth chmod 600 box:secret.txt", "its owner alone"},
				{"berth chmod 755 box:bin/run", "to be run"},
			}},
		{name: "exec", args: "HOST[:DIR] [--] COMMAND [ARGUMENT ...]", min: 0, max: 1, command: true, ownSignals: true, words: hostWords, run: runExec,
			help: "run a command on the box",
			text: "COMMAND is one of those that the user may run; with several words behind it, its arguments. For users\nwith shell, what is no such command is a command line. Standard input, output and error are the command's\nown, signals are forwarded, and the exit code is its own; 128 and the signal's number if one ended it.",
			options: with([]option{
				{name: "tty", short: 't', help: "on a terminal of its own, for programs as top and vi"},
				{name: "shell", short: 's', help: "the words are a command line for the shell, also if there is a command of that name"},
				{name: "no-stdin", short: 'n', help: "standard input is empty"},
			}, []option{quietOption, verboseOption}),
			examples: []example{
				{"berth exec box -- snap door.jpg", "a named command with an argument"},
				{"tar c . | berth exec box -- unpack", "its standard input is the pipe"},
			}},
		{name: "sh", args: "[HOST[:DIR]]", max: 1, ownSignals: true, words: hostWords, run: runShell,
			help:    "a prompt, for people who miss ftp(1)",
			text:    "All verbs without the host, and cd, lcd, pwd, lpwd, !command. Tab completes, the arrows bring back what\nwas typed; help lists the words.",
			options: with(nil, []option{quietOption}),
			examples: []example{
				{"berth sh ann@box:photos", "begin in photos"},
				{"echo 'ls -l' | berth sh box", "lines from another program; the first that fails ends it"},
			}},
		{name: "chat", args: "[HOST]", max: 1, words: hostWords, run: runChat,
			help:    "talk to the others on the box",
			options: with(nil, []option{quietOption, jsonOption}),
			examples: []example{
				{"berth chat ann@box", "lines typed are said; end with Ctrl-D"},
				{"echo going home | berth chat ann@box", "say one thing"},
			}},
		{name: "time", args: "[HOST ...]", max: -1, words: hostWords, run: runTime,
			help:    "tell the box's time, and how far this clock is from it",
			options: with([]option{{name: "udp", short: 'u', help: "ask by a datagram, without a login"}}, []option{quietOption, jsonOption}),
			examples: []example{
				{"berth time ann@box", "its clock, and the difference"},
				{"berth time --udp box", "without a login"},
			}},
		{name: "ping", args: "[HOST]", max: 1, words: hostWords, run: runPing,
			help: "tell how long the way to the box and back takes",
			options: with([]option{
				{name: "udp", short: 'u', help: "by datagrams, without a login"},
				{name: "count", short: 'c', arg: "N", help: "N times; 0: until Ctrl-C", def: "4", check: wholeNumber},
				{name: "interval", short: 'i', arg: "TIME", help: "how long between two", def: "1s", check: aDuration},
			}, []option{quietOption, jsonOption}),
			examples: []example{
				{"berth ping ann@box", "over a connection, through TLS"},
				{"berth ping --udp -c 1 box", "exit code 3 if there is no answer"},
			}},
		{name: "discover", args: "[ADDRESS ...]", max: -1, run: runDiscover,
			help: "find boxes on the local networks",
			options: []option{
				{name: "port", short: 'p', arg: "PORT", help: "their datagram port", def: defaultPort, check: portNumber},
				{name: "wait", short: 'w', arg: "TIME", help: "how long to wait for answers", def: "2s", check: aDuration},
				quietOption, jsonOption,
			},
			examples: []example{
				{"berth discover", "name, address, version and fingerprint of each"},
				{"berth discover 192.168.1.20", "ask one address, also behind a router"},
			}},
		{name: "keygen", max: 0, run: runKeygen,
			help: "make a key that logs in, in place of a password",
			text: "The key is a TLS client certificate. What is printed goes into the user's file on the box.",
			options: []option{
				{name: "file", short: 'f', arg: "FILE", help: "the key goes there, not to ~/.config/berth/id.pem"},
				{name: "comment", short: 'C', arg: "TEXT", help: "whose key it is, user and machine unless said otherwise"},
				{name: "force", help: "replace the key that is there"},
				{name: "remove", short: 'R', arg: "HOST", help: "make no key, but forget the certificate of HOST"},
				quietOption,
			},
			examples: []example{
				{"berth keygen", "makes the key and says what to do with it"},
				{"berth keygen -R box", "box has a new certificate, and you know why"},
			}},
		{name: "help", args: "[COMMAND]", max: 2, words: verbWords, run: runHelp,
			help: "tell about a command",
			examples: []example{
				{"berth help get", "what it takes, with examples"},
				{"berth help", "the list of commands"},
			}},
		{name: "completion", args: "bash|zsh|fish", min: 1, max: 1, values: []string{"bash", "zsh", "fish"}, run: runCompletion,
			help: "print what a shell needs to complete berth's command lines",
			examples: []example{
				{"berth completion bash > /etc/bash_completion.d/berth", "for everybody"},
				{"source <(berth completion zsh)", "for this shell"},
			}},
		{name: "man", max: 0, run: runMan,
			help: "print the man page, as troff",
			examples: []example{
				{"berth man | man -l -", "read it"},
				{"berth man > /usr/local/share/man/man1/berth.1", "install it"},
			}},
	}
	for i := range list {
		list[i].client = true
	}
	return list
}
