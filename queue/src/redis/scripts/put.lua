-- ARGV: time, result_ttl, then per result: id, attempt, outcome, content type or reason, body, when it
-- was finished. Answers `stored`, `duplicate` or `stale` for each.
local told, news, seen, names = {}, {}, {}, {}
local ttl, is_first = tonumber(ARGV[2]), true
for nth = 3, #ARGV, 6 do
  local id = ARGV[nth]
  names[#names + 1] = key('result:' .. id)
  names[#names + 1] = key('chunks:' .. id)
  if seen[id] then is_first = false end
  seen[id] = true
end
is_first = is_first and redis.call('EXISTS', unpack(names)) == 0
for nth = 3, #ARGV, 6 do
  local id, attempt, outcome, what, body, finished = unpack(ARGV, nth, nth + 5)
  local fields = { 'finished-at', finished, 'error', what }
  if outcome == 'completed' then fields = { 'finished-at', finished, 'content-type', what, 'body', body } end
  local became = answer(id, tonumber(attempt), outcome, ttl, fields, is_first)
  told[#told + 1] = became
  if became == 'stored' then news[#news + 1] = id end
end
tell_answers(news)
return told
